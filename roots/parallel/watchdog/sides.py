"""What the watchdog's thread does: on rank 0 it hears all and judges, elsewhere it reports."""

from __future__ import annotations

from collections.abc import Sequence

from roots.parallel.watchdog.judge import Sight, judge
from roots.parallel.watchdog.link import Hub, Line, now
from roots.parallel.watchdog.record import Goodbye, Message, Question, Record, Verdict
from roots.parallel.watchdog.watch import Watch

Heard = Sequence[tuple[int, Message]]


def _unheard(watch: Watch, rank: int) -> Record:
    """What is known of a rank before it first speaks."""
    return Record(rank, watch.place.owners[rank].host, 0, "restart", begun=False)


class HubSide:
    """Rank 0: answers every record with its own and passes on goodbyes and the verdict."""

    def __init__(self, watch: Watch, hub: Hub, heard: Heard = ()) -> None:
        """`heard`: what has come before this watch began, by rank."""
        self._watch, self._hub = watch, hub
        self._before = heard
        self._records: dict[int, Record] = {}
        self._heard = dict.fromkeys(hub.lines, now())
        self._goodbyes: dict[int, Goodbye] = {}
        self._ended: set[int] = set()
        self._asked = 0.0

    def run(self) -> None:
        """Until the watch is finished or has a verdict."""
        watch, due = self._watch, now()
        for rank, line in self._hub.lines.items():
            watch.waker.add(line.connection, rank)
        for rank, message in self._before:
            self._take(rank, message)
        while not watch.finished.is_set():
            for rank in watch.waker.wait(due - now()):
                self._read(rank, self._hub.lines[rank])
            if self._answered() or now() >= due:
                due = now() + watch.beat
                verdict = judge(self._sights(), watch.limits)
                if verdict is not None:
                    self._tell(verdict)
                    watch.conclude(verdict, speaks=True)
                    return
        if watch.farewell is not None:
            self._tell(watch.farewell)

    def close(self) -> None:
        """Close the connections, which tells those who still watch that this process is gone."""
        self._hub.close()

    def _answered(self) -> bool:
        """Whether a rank has ended and all others have said since where they are."""
        if not self._ended:
            return False
        if not self._asked:
            self._asked = now()
            for line in self._hub.lines.values():
                line.send(Question())
        return all(self._heard[rank] >= self._asked for rank in self._hub.lines)

    def _read(self, rank: int, line: Line) -> None:
        for message in line.receive():
            self._take(rank, message)
        if line.broken:
            del self._hub.lines[rank]
            self._watch.waker.remove(line.connection)
            line.close()
            if rank not in self._goodbyes:
                self._ended.add(rank)

    def _take(self, rank: int, message: Message) -> None:
        self._heard[rank] = now()
        if isinstance(message, Record):
            self._records[rank] = message
            self._hub.lines[rank].send(self._watch.record())
        elif isinstance(message, Goodbye):
            self._goodbyes[rank] = message
            self._tell(message)
            self._watch.hear_goodbye(message)

    def _tell(self, message: Goodbye | Verdict) -> None:
        for rank, line in self._hub.lines.items():
            if rank != message.rank or isinstance(message, Verdict):
                line.send(message)

    def _sights(self) -> dict[int, Sight]:
        sights = {0: Sight(self._watch.record(), 0.0)}
        for rank, heard in self._heard.items():
            record = self._records.get(rank) or _unheard(self._watch, rank)
            goodbye = self._goodbyes.get(rank)
            sights[rank] = Sight(record, now() - heard, rank in self._ended, goodbye)
        return sights


class SpokeSide:
    """Any other rank: reports, and notices by itself when rank 0 is gone or silent."""

    def __init__(self, watch: Watch, line: Line, heard: Heard = ()) -> None:
        """`heard`: what has come before this watch began."""
        self._watch, self._line = watch, line
        self._before = [message for _, message in heard]
        self._hub_record = _unheard(watch, 0)
        self._goodbye: Goodbye | None = None
        self._heard = now()

    def run(self) -> None:
        """Until the watch is finished or has a verdict."""
        watch, line, due = self._watch, self._line, now()
        watch.waker.add(line.connection, 0)
        while not watch.finished.is_set():
            if self._before or watch.waker.wait(due - now()):
                verdict = self._read()
                if verdict is not None:
                    watch.conclude(verdict, speaks=False)
                    return
            if now() >= due:
                line.send(watch.record())
                due = now() + watch.beat
            verdict = self._judge_hub()
            if verdict is not None:
                watch.conclude(verdict, speaks=watch.speaks_without_hub())
                return
        if watch.farewell is not None:
            line.send(watch.farewell)

    def close(self) -> None:
        """Close the connection, which tells a hub that still watches that this process is gone."""
        self._line.close()

    def _read(self) -> Verdict | None:
        before, self._before = self._before, []
        for message in before or self._line.receive():
            self._heard = now()
            if isinstance(message, Verdict):
                return message
            if isinstance(message, Question):
                self._line.send(self._watch.record())
            elif isinstance(message, Record):
                self._hub_record = message
            else:
                self._watch.hear_goodbye(message)
                if message.rank == 0:
                    self._goodbye = message
        if self._line.broken:
            self._watch.waker.remove(self._line.connection)
        return None

    def _judge_hub(self) -> Verdict | None:
        """The verdict on rank 0, who cannot judge when it is gone."""
        watch, silent = self._watch, now() - self._heard
        if not self._line.broken and silent <= watch.limits.timeout:
            return None
        mine = watch.record()
        sights = {
            0: Sight(self._hub_record, silent, self._line.broken, self._goodbye),
            mine.rank: Sight(mine, 0.0),
        }
        return judge(sights, watch.limits)
