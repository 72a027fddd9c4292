from .app import create_app as create_app
from .errors import HTTPError as HTTPError, body_of as body_of, status_of as status_of
from .run import serve as serve
from .settings import ServerSettings as ServerSettings
from .state import ServerState as ServerState
