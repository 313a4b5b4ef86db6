"""Who waits: let in one after the other, by turns of their clients."""

from __future__ import annotations

from collections import OrderedDict, deque

from alignvec.serve.request import Job


class Turns:
    """Requests that are not let in yet. Whoever holds it must be alone with it."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, list(self._queues.values())))

    def add(self, job: Job) -> None:
        """At the end of its client's queue."""
        self._queues.setdefault(job.request.client, deque()).append(job)

    def remove(self, job: Job) -> None:
        """If it is still there."""
        client = job.request.client
        queue = self._queues.get(client)
        if queue and job in queue:
            queue.remove(job)
            if not queue:
                del self._queues[client]

    def last_of_most(self, client: str) -> Job | None:
        """The newest request of the client that has most, if `client` has fewer, with one more."""
        longest = max(self._queues.values(), key=len)
        own = len(self._queues.get(client, ()))
        return longest[-1] if len(longest) > own + 1 else None

    def first(self) -> Job | None:
        """Who is next."""
        return next((queue[0] for queue in self._queues.values()), None)

    def pop(self) -> Job:
        """Take the first; the next turn is another client's."""
        client, queue = next(iter(self._queues.items()))
        job = queue.popleft()
        self._queues.move_to_end(client)
        if not queue:
            del self._queues[client]
        return job
