"""`Surface`: what a folder of `api/` brings to the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from trifocal.http.errors import ErrorForm


@dataclass(frozen=True)
class Surface:
    """Routes, and how errors are written on them, before they are reached too (no key, no such method)."""

    routers: Sequence[APIRouter]
    error_form: ErrorForm


def error_forms(surfaces: Iterable[Surface], default: ErrorForm) -> Callable[[str], ErrorForm]:
    """A function from a path to the form of errors there; `default` for paths that no surface has."""
    forms = {
        route.path: surface.error_form
        for surface in surfaces
        for router in surface.routers
        for route in router.routes
        if isinstance(route, APIRoute)
    }
    return lambda path: forms.get(path, default)
