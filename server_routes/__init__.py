"""The routes under `/guarded`: request → core → response, and no rules of their own."""

from . import artifacts, faces, health, janitor, jobs, prompt
from .table import Route, Services, register

ROUTES: list[Route] = [
    *prompt.ROUTES,
    *jobs.ROUTES,
    *artifacts.ROUTES,
    *faces.ROUTES,
    *health.ROUTES,
    *janitor.ROUTES,
]

__all__ = ["ROUTES", "Route", "Services", "register"]
