from .store import StoreInfo as StoreInfo
from .vlm import VLM as VLM
