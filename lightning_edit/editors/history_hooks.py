"""History hooks of an editor: follow the ledger's list of edits in force."""

from collections.abc import Callable, Sequence

from lightning_edit.edits.delta import Delta
from lightning_edit.edits.in_force import HistoryChange


class HistoryHooks:
    """History of an editor, derived from the list of edits in force.

    A subclass overrides :meth:`on_history`. :meth:`remember`, :meth:`forget` and :meth:`recall`
    serve scripts without a ledger; as hooks they are those of earlier versions, and still called
    where a subclass overrides them.
    """

    _remembered: list[Delta]

    def on_history(self, in_force: Sequence[Delta], change: HistoryChange) -> None:
        """Update the history after a change of the edits in force; called by the ledger.

        What an editor keeps of earlier edits follows from this list alone: after an undo it is what
        it would be without the edit. A commit costs the same however long the list is, and gives
        the bits of a rebuild. The default keeps nothing.

        Args:
            in_force: Deltas in force, in the order of their commits; a live view, loaded from disk
                when read.
            change: What has just changed.
        """
        if not any(map(self._overrides, ("remember", "forget", "recall"))):
            return  # the deltas of a long stream are not read for nothing
        remember, forget = self._overridden("remember"), self._overridden("forget")
        if change.kind == "removed":
            for delta in reversed(change.deltas):
                forget(delta)
        elif change.kind == "inserted":
            behind = in_force[change.position + 1 :]
            for delta in reversed(behind):
                forget(delta)
            for delta in (*change.deltas, *behind):
                remember(delta)
        else:
            name = "recall" if change.kind == "restored" else "remember"
            take = self._overridden(name)
            if not self._overrides(name):
                return
            for delta in change.deltas if change.kind == "appended" else in_force:
                take(delta)

    def _overrides(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(HistoryHooks, name)

    def _overridden(self, name: str) -> Callable[[Delta], None]:
        """Return a subclass's own hook, or one that does nothing."""
        if not self._overrides(name):
            return lambda delta: None
        hook: Callable[[Delta], None] = getattr(self, name)
        return hook

    def remember(self, delta: Delta) -> None:
        """Add a delta to the history without a ledger.

        Args:
            delta: An edit that is in the model.
        """
        self._by_hand("remember", [*self._remembered, delta], HistoryChange("appended", (delta,)))

    def forget(self, delta: Delta) -> None:
        """Remove a delta from the history that :meth:`remember` added, to the bit.

        Args:
            delta: The edit; one that was not added changes nothing.
        """
        left = [one for one in self._remembered if one is not delta]
        if len(left) < len(self._remembered):
            self._by_hand("forget", left, HistoryChange("removed", (delta,)))

    def recall(self, delta: Delta) -> None:
        """Register a delta in force whose history a checkpoint has restored, without a ledger.

        Args:
            delta: The edit.
        """
        self._by_hand("recall", [*self._remembered, delta], HistoryChange("restored"))

    def _by_hand(self, name: str, in_force: list[Delta], change: HistoryChange) -> None:
        # A subclass that overrides the hook itself may call this one through `super`.
        if getattr(type(self), name) is getattr(HistoryHooks, name):
            self._remembered = in_force
            self.on_history(in_force, change)
