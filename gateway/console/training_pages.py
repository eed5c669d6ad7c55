"""The page of a training: how far it is, its losses, and what came of it."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from starlette.responses import Response

from gateway.console.admin_api import fill_address
from gateway.console.signed_in_request import Visit
from monitoring.training.loss_plot import draw_losses


async def show_training(visit: Visit) -> Response:
    """One training."""
    return await visit.render("training.html", **await load_training(visit))


async def load_training(visit: Visit) -> dict[str, Any]:
    """A training's data, with its losses as a picture."""
    name = visit.request.path_params["training"]
    training = await visit.api.get(fill_address("/admin/v1/trainings/{training}", training=name))
    progress, steps = training["progress"], training["parameters"]["steps"]
    heldout = progress["heldout"][-1] if progress["heldout"] else (None, None, None)
    each = progress["seconds_each"]
    is_running = training["status"] == "running"
    return {
        "training": training,
        "progress": progress,
        "heldout_loss": heldout[1],
        "heldout_right": heldout[2],
        "seconds_left": each * (steps - progress["step"]) if is_running and each else None,
        "picture": Markup(draw_losses("Loss by step", progress["losses"], progress["heldout"])),  # noqa: S704 - escaped
        "names": await visit.name_people([training["by"]]),
    }
