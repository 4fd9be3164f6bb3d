"""The network between a box and its database, or another box."""

import contextlib
import queue
import socket
import threading
import time


class Link:
    """Passes on what comes, until it is cut: then nothing comes through in either way, and nobody is told.

    `delay_s`: how long each way takes.
    """

    def __init__(self, port, delay_s=0.0):
        self._port = port
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._pairs = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self):
        self._open.clear()

    def mend(self):
        """New connections come through; those of before are lost."""
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.set()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.mend()
        for thread in self._threads:
            thread.join()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                box, _address = self._listener.accept()
                self._open.wait()
                try:
                    engine = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # it is down
                    box.close()
                    continue
                for end in (box, engine):  # as libpq does: what comes in pieces goes on in pieces, at once
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((box, engine))
                self._threads.append(threading.Thread(target=self._pass_on, args=(box, engine), daemon=True))
                self._threads[-1].start()

    def _pass_on(self, box, engine):
        back = threading.Thread(target=self._pump, args=(engine, box), daemon=True)
        with box, engine:
            back.start()
            self._pump(box, engine)
            back.join()

    def _pump(self, source, target):
        on_their_way = queue.SimpleQueue()
        sender = threading.Thread(target=self._send, args=(on_their_way, source, target), daemon=True)
        if self._delay_s:
            sender.start()
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                if self._delay_s:
                    on_their_way.put((time.monotonic() + self._delay_s, data))
                else:
                    target.sendall(data)
        if self._delay_s:
            on_their_way.put(None)
            sender.join()
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _send(self, on_their_way, source, target):
        with contextlib.suppress(OSError):
            while (part := on_their_way.get()) is not None:
                due_s, data = part
                time.sleep(max(due_s - time.monotonic(), 0))
                target.sendall(data)
            return
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)  # nobody is there any more
