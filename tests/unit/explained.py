"""What PostgreSQL does for each statement of a store: rows that a plan's nodes have looked at, and pages."""

import re

from psycopg import sql

_MEASURED = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b")
_SETTINGS = re.compile(r"\s*SELECT (set_config|pg_advisory|pg_try_advisory|pg_terminate)")
#: What psycopg tells of the values; of a text and a list it tells nothing.
_TYPES = {int: "bigint", float: "double precision", bytes: "bytea"}


class Explaining:
    """A connection of psycopg that has each statement explained before it is executed, and counts what that says.

    `is_generic`: by the plan for any values, which the engine may take once a statement is prepared; otherwise by the
    one for these values.
    """

    def __init__(self, raw, is_generic):
        self._raw, self._is_generic = raw, is_generic
        # It would drop what is prepared here wherever something is rolled back.
        raw.prepare_threshold = None
        raw._prepared._names.clear()
        self._plans = []
        self.counts = False

    def __getattr__(self, name):
        return getattr(self._raw, name)

    def execute(self, query, params=None, **options):
        if self.counts and _MEASURED.match(query) and not _SETTINGS.match(query):
            self._explain(query, list(params or ()))
        return self._raw.execute(query, params, **options)

    def _explain(self, query, params):
        # What it changes is taken back; where nothing is begun there is nothing that changes.
        undone = not query.lstrip().startswith(("SELECT", "WITH"))
        if undone:
            self._raw.execute("SAVEPOINT explained")
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON, TIMING OFF)"
        if self._is_generic:
            types = ", ".join(_TYPES.get(type(value), "unknown") for value in params)
            self._raw.execute(f"PREPARE explained{f' ({types})' if params else ''} AS {query}")
            values = ", ".join(sql.Literal(value).as_string(self._raw) for value in params)
            self._raw.execute("SET plan_cache_mode = force_generic_plan")
            plan = self._raw.execute(f"{explain} EXECUTE explained{f'({values})' if params else ''}")
            self._raw.execute("DEALLOCATE explained")
        else:
            plan = self._raw.execute(f"{explain} {query}", params, prepare=False)
        self._plans.append((query, plan))
        if undone:
            self._raw.execute("ROLLBACK TO SAVEPOINT explained")

    def take(self):
        """What was counted since the last time, the statement that took most of it, and its plan."""
        plans, self._plans = self._plans, []
        steps = []
        for query, plan in plans:
            (told,) = plan.fetchone()
            (root,) = told
            steps.append((count_steps(root["Plan"]), query, describe(root["Plan"])))
        total = sum(each[0] for each in steps)
        return total, max(steps, default=(0, "", []), key=lambda step: step[0])


def describe(node):
    facts = ("Node Type", "Index Name", "Index Cond", "Filter", "Rows Removed by Filter", "Actual Rows", "Actual Loops")
    return [{name: node[name] for name in facts if name in node}, *map(describe, node.get("Plans", ()))]


def count_steps(node):
    """Rows that this node and those below it have looked at, and pages that they have touched."""
    rows = sum(
        node.get(name, 0)
        for name in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter",
                     "Rows Removed by Index Recheck", "Heap Fetches")
    )  # fmt: skip
    pages = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
    below = node.get("Plans", ())
    # A node's pages are also those of the nodes below it.
    own = max(pages - sum(each.get("Shared Hit Blocks", 0) + each.get("Shared Read Blocks", 0) for each in below), 0)
    return round(rows * node.get("Actual Loops", 1)) + own + sum(map(count_steps, below))
