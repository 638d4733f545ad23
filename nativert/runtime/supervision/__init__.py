"""Somebody who is always there: restarts, health checks, dependencies, and the repair of drift."""
