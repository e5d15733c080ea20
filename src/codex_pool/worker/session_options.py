"""Options of sessions that the worker must know: which of them get all turns of their threads. Pure."""

from __future__ import annotations

from ..protocol import wire


class SessionOptions:
    """See the module's docstring. Sessions with the default options are not in it."""

    def __init__(self) -> None:
        self._options: dict[wire.SessionId, wire.SessionOptions] = {}
        # Looked into for each turn that begins, and by the router.
        self.all_turns: set[wire.SessionId] = set()

    def __len__(self) -> int:
        return len(self._options)

    @property
    def records(self) -> list[wire.SessionOptions]:
        return [*self._options.values()]

    def take(self, options: wire.SessionOptions) -> None:
        """Note the options of a session, in place of those that it had."""
        self.forget(options.session)
        if options.all_turns or options.keep:
            self._options[options.session] = options
        if options.all_turns:
            self.all_turns.add(options.session)

    def forget(self, session: wire.SessionId) -> None:
        """Remove a session that is over."""
        self._options.pop(session, None)
        self.all_turns.discard(session)
