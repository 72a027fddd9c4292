from .app import create_app as create_app
from .run import serve as serve
from .settings import ServerSettings as ServerSettings
