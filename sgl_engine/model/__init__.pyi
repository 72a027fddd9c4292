from .settings import (
    LoadSettings as LoadSettings,
    check_settings as check_settings,
    same_source as same_source,
    settings_of_each as settings_of_each,
)
from .store import StoreInfo as StoreInfo
from .thoughts import SpeltTags as SpeltTags, ThoughtTags as ThoughtTags
from .vlm import VLM as VLM
