"""What each route of the HTTP API does: the page's and scripts' way into the service, a file for each kind of thing."""

from dreambooth.service.routes.base import Answer, Door, Route, Routes
from dreambooth.service.routes.machine import Machine
from dreambooth.service.routes.models import Models
from dreambooth.service.routes.pictures import Pictures
from dreambooth.service.routes.runs import Runs
from dreambooth.service.routes.short_jobs import Errands

KINDS: tuple[type[Routes], ...] = (Machine, Models, Pictures, Runs, Errands)

__all__ = ["KINDS", "Answer", "Door", "Route", "Routes"]
