"""The routes under `/guarded`: request → core → response, and no rules of their own."""

from . import health, jobs, prompt
from .table import Route, Services, register

ROUTES: list[Route] = [*prompt.ROUTES, *jobs.ROUTES, *health.ROUTES]

__all__ = ["ROUTES", "Route", "Services", "register"]
