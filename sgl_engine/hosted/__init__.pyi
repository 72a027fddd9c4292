from .evidence import (
    Evidence as Evidence,
    SentPicture as SentPicture,
    choose_mode as choose_mode,
    encode as encode,
    gather as gather,
    show as show,
)
from .model import (
    HostedAnswer as HostedAnswer,
    HostedCall as HostedCall,
    HostedModel as HostedModel,
    HostedUsage as HostedUsage,
)
from .openai_model import OpenAIModel as OpenAIModel
from .picture_tokens import count_picture_tokens as count_picture_tokens
from .regions import Regions as Regions, find_regions as find_regions
