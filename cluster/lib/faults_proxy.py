"""A proxy between the clients and HAProxy, for what the kernel can't do here: delays, and connections that only seem to be open."""
import asyncio, contextlib, threading

CHUNK, CHUNKS = 1 << 16, 1 << 10


class Proxy:
    """Listens on `at` and passes on to `to` (host, port) until stop(). All of it runs on one thread of its own."""

    def __init__(self, at, to):
        self.at, self.to = at, to
        self.delay = 0.0  # Seconds, each way.
        self.deaf = set()  # What comes over these goes nowhere, and nobody is told.
        self.open = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.listen(), self.loop).result(5)

    async def listen(self):
        self.server = await asyncio.start_server(self.accept, *self.at)

    async def accept(self, reader, writer):
        """One connection, until both ends have ended."""
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.to)
        except OSError:
            return writer.close()
        this = object()
        self.open.add(this)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self.pass_on(this, reader, there_writer), self.pass_on(this, there_reader, writer))
        self.open.discard(this)

    async def pass_on(self, this, reader, writer):
        # A delay isn't a lower rate: the next chunk is read while this one waits.
        waiting = asyncio.Queue(CHUNKS)

        async def write():
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(max(0, due - self.loop.time()))
                if this in self.deaf:
                    continue
                if not chunk:
                    return writer.close()
                writer.write(chunk)
                await writer.drain()
        task = asyncio.ensure_future(write())
        try:
            chunk = b"-"
            while chunk:
                try:
                    chunk = await reader.read(CHUNK)
                except OSError:
                    chunk = b""
                await waiting.put((self.loop.time() + self.delay, chunk))
            await task
        except OSError:
            pass
        finally:
            task.cancel()
            writer.close()

    def deafen(self):
        """Each connection that is open now only seems to be from here on; new ones are as ever."""
        self.loop.call_soon_threadsafe(lambda: self.deaf.update(self.open))

    def stop(self):
        """All connections end, and nothing listens any more."""
        async def end():
            self.server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
