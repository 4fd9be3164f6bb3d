"""What PostgreSQL does for each statement of a store: rows that a plan's nodes have looked at, and pages."""

import re

from psycopg import sql

_MEASURED = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b")
_CHANGES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_SETTINGS = re.compile(r"\s*SELECT (set_config|pg_advisory|pg_try_advisory|pg_terminate)")
#: What psycopg tells of the values; of a text and a list it tells nothing.
_TYPES = {int: "bigint", float: "double precision", bytes: "bytea"}


class Explaining:
    """Statements of a connection, each of which is explained before it is executed, and what that says is counted.

    `is_generic`: by the plan for any values, which the engine may take once a statement is prepared; otherwise by the
    one for these values.
    """

    def __init__(self, statements, raw, is_generic):
        self._statements, self._raw, self._is_generic = statements, raw, is_generic
        self._plans = []
        self.counts = False

    def __getattr__(self, name):
        return getattr(self._statements, name)

    def send(self, query, values=()):
        if self.counts and _MEASURED.match(query) and not _SETTINGS.match(query):
            self._explain(query, list(values))
        return self._statements.send(query, values)

    def _explain(self, query, params):
        """What it changes is taken back."""
        if not _CHANGES.search(query):
            self._ask(query, params)
        elif self._statements.is_begun:
            self._statements.send("SAVEPOINT explained")
            self._ask(query, params)
            self._statements.send("ROLLBACK TO SAVEPOINT explained")
        else:
            self._statements.begin()
            self._statements.send("BEGIN")
            self._ask(query, params)
            self._statements.send("ROLLBACK")
            self._statements.end()

    def _ask(self, query, params):
        send = self._statements.send
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON, TIMING OFF)"
        if self._is_generic:
            types = ", ".join(_TYPES.get(type(value), "unknown") for value in params)
            send(f"PREPARE explained{f' ({types})' if params else ''} AS {query}")
            values = ", ".join(sql.Literal(value).as_string(self._raw) for value in params)
            send("SET plan_cache_mode = force_generic_plan")
            plan = send(f"{explain} EXECUTE explained{f'({values})' if params else ''}")
            send("DEALLOCATE explained")
        else:
            plan = send(f"{explain} {query}", params)
        self._plans.append((query, plan))

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
