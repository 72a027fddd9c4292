from .app import create_app as create_app
from .errors import body_of as body_of
from .run import serve as serve
from .settings import ServerSettings as ServerSettings
from .state import ServerState as ServerState
