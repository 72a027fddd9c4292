from .settings import (
    LoadSettings as LoadSettings,
    check_settings as check_settings,
    settings_of_each as settings_of_each,
)
from .store import StoreInfo as StoreInfo
from .thoughts import ThoughtTags as ThoughtTags
from .vlm import VLM as VLM
