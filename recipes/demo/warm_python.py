"""Start-up server of a CPU run: it imports torch, sglang and verl once and forks every Python process of the run.

A run of verl is about ten processes which each import the same modules for half a minute, one after the other.
As a prefix of the command that starts it::

    python recipes/demo/warm_python.py run -- python -u -m verl.trainer.main_ppo key=value ...

Four kinds of process:

- The launcher (``run``) starts the server, adds ``runtime_env.py_executable`` to the command's arguments, and is
  replaced by the command (exec).
- The server imports the modules while the driver starts, then forks one process for each client.
- The client is what Ray starts as its Python. It sends its arguments, environment, directory, descriptors and signal
  mask to the server, forwards signals to the fork, and exits as the fork exits.
- The fork runs what the client was to run. multiprocessing's "spawn" inside a fork starts a client again.

Where there is an accelerator, or Ray is not started by the command, the command runs without a server.

Invariants:

- The server has one thread whenever it forks, and has imported no ``ray`` before a first worker of Ray asks for a
  Python: ray keeps the ``RAY_*`` variables it reads when it is imported. If either is violated, the server stops.
- A fork has the client's descriptors, environment, directory, signal mask, a session of its own (so that Ctrl-C in a
  terminal is delivered to it once, by the client), and random states of its own.
- A fork is killed when its client or the server ends; the server ends when the command ends, for whatever reason, and
  removes its private directory (mode 0700). The command replaces the launcher, so its exit code and the signals sent
  to it are its own.
- A client that finds no server, or none that is ready in time, executes a regular Python with the same arguments and
  logs that. No program runs twice: the fork starts only after the client's commit message, and a client that has sent
  it no longer falls back.

Limitations:

- Interpreter options other than -u and -B, programs in a directory or zip file, and a second job of Ray run in a
  regular Python. A fork has no controlling terminal.
- What the interpreter or an imported module reads from the environment when it starts (PYTHONHASHSEED, SGLANG_*) is
  as it was when the run began, or, for ray and verl, when its first worker started.
- The parent of a fork is the server. A process that asks to be killed with its parent, as sglang's do, continues when
  Ray kills only the actor that spawned it, until the run ends.
- One machine only. A server killed by SIGKILL ends the run, and leaves its (small) directory behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

# The client imports nothing else, and this is one file for its sake: it is started by file name, without site-packages
# and without a package to import from, and should take milliseconds. The other parts import inside their functions.

PRELOAD = (
    "torch,torch._inductor,torch.distributed.fsdp,tensordict,torchdata.stateful_dataloader,datasets,peft,hydra,"
    "sklearn.metrics,transformers.models.qwen3.modeling_qwen3,sglang.srt.entrypoints.http_server,"
    "sglang.srt.managers.scheduler,sglang.srt.managers.detokenizer_manager,sglang.srt.models.registry"
)
PRELOAD_WITH_RAY = (
    "ray._private.workers.default_worker,verl.trainer.main_ppo,verl.trainer.ppo.v1,verl.workers.engine_workers,"
    "verl.workers.engine.fsdp.transformer_impl,verl.workers.rollout.sglang_rollout.async_sglang_server,"
    "verl.experimental.reward_loop,verl.experimental.agent_loop.single_turn_agent_loop"
)
EXECUTABLE_KEY = "ray_kwargs.ray_init.runtime_env.py_executable"
SERVER_ENV = {
    "OMP_NUM_THREADS": "1",  # no threads of libgomp and OpenBLAS; a fork gives torch as many as it was to have
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "SGLANG_USE_CPU_ENGINE": "1",
}
READY_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 10.0  # a client sends its request at once; a stopped one must not block the others
# Descriptors below are reserved for the clients', those of imported modules lie above; one message can carry 253.
RESERVED_DESCRIPTORS = 250
FORWARDED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
READY, COMMIT = b"r", b"c"  # the handshake: the server can fork now; the client will not run the program itself
PR_SET_PDEATHSIG = 1


class Program(NamedTuple):
    """A parsed command line of the interpreter."""

    kind: str  # "-c", "-m" or "script"
    target: str
    args: list[str]
    unbuffered: bool
    bytecode: bool


class Request(NamedTuple):
    """A program and the process state it is to start with.

    ``descriptors`` are the client's numbers of those that follow as ancillary data; ``blocked`` and ``ignored`` are
    signal numbers.
    """

    program: Program
    env: dict[str, str]
    cwd: str
    descriptors: list[int]
    blocked: list[int]
    ignored: list[int]


def log_message(message: str) -> None:
    """Print to stderr, with this module's name."""
    print(f"warm_python: {message}", file=sys.stderr, flush=True)


# The client.


def parse_program(argv: list[str]) -> Program | None:
    """The arguments of an interpreter; None where a fork cannot run them as a regular Python would."""
    flags = {"-u": False, "-B": False}
    rest = list(argv)
    while rest and rest[0] in flags:
        flags[rest.pop(0)] = True
    match rest:
        case [("-c" | "-m") as kind, target, *args]:
            pass
        case [target, *args] if os.path.isfile(target):
            kind = "script"
        case _:
            return None
    return Program(kind, target, args, flags["-u"] or bool(os.environ.get("PYTHONUNBUFFERED")), not flags["-B"])


def run_client(socket_path: str, ready_timeout_s: float, argv: list[str]) -> NoReturn:
    """Run ``python ARGV`` in a fork of the server if possible, else in this process; exit as it exits."""
    program = parse_program(argv)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    connection = program and _request_fork(socket_path, ready_timeout_s, program, mask)
    if not connection:
        os.execv(sys.executable, [sys.executable, *argv])
    code = _forward_signals_until_exit(connection, mask)
    if code < 0:
        # The parent shall see death by the same signal, so this process sends it to itself with the default handler.
        with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP have no handlers
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _request_fork(socket_path: str, ready_timeout_s: float, program: Program, mask: set[int]) -> socket.socket | None:
    """Send the program to the server; the connection to its fork, or None if no server accepts it.

    With a connection the forwarded signals stay blocked, which they were not in ``mask``.
    """
    descriptors = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_inherited(fd)]
    if max(descriptors, default=0) >= RESERVED_DESCRIPTORS:
        return None
    request = Request(
        program,
        dict(os.environ),
        os.getcwd(),
        descriptors,
        [int(number) for number in mask],
        [int(number) for number in FORWARDED_SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
    )
    body = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ready_timeout_s)
    try:
        connection.connect(socket_path)
        connection.sendall(len(body).to_bytes(4, "big") + body)
        if connection.recv(1) != READY:
            raise ConnectionError("the server does not take the program")
        # The fork runs from the next line on: a signal must wait until it can be forwarded, not end this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
        # Only now: until it is ready, a server that holds the descriptors would keep the other ends of pipes open.
        socket.send_fds(connection, [COMMIT], descriptors)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        log_message(f"{error}; starting a cold python, which is slower")
        connection.close()
        return None
    connection.settimeout(None)
    # Closed here (as the null device), or a pipe that the fork closes would stay open.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in descriptors:
        if fd != sys.stderr.fileno():
            os.dup2(null, fd)
    return connection


def _is_inherited(fd: int) -> bool:
    """Whether the descriptor was passed through exec: those are inheritable, Python's own are not."""
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one that listdir opened and has closed
        return False


def _forward_signals_until_exit(connection: socket.socket, mask: set[int]) -> int:
    """Forward the signals that ``mask`` does not block until the fork ends; its exit code, negative for a signal."""

    def forward(number: int, _: Any) -> None:
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))

    for number in FORWARDED_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        reply = connection.recv(4)
    except OSError:
        reply = b""
    if len(reply) < 4:
        log_message("the server is gone, and the program with it")
        return 1
    return int.from_bytes(reply, "big", signed=True)


# The server.


class Child:
    """A fork and its client."""

    def __init__(self, pid: int, connection: socket.socket):
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.connection = connection
        self.ended = False


class Server:
    """Forks a child for every client of ``listener``.

    Args:
        listener: bound and listening.
        with_ray: modules to import when the first worker of Ray asks for a fork.
    """

    def __init__(self, listener: socket.socket, with_ray: list[str]):
        import selectors

        self._listener = listener
        self._with_ray = with_ray
        self._ray_job: str | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._read = selectors.EVENT_READ

    def serve_until_forked(self) -> tuple[Request, list[int]]:
        """Serve clients. Returns in a fork only: its request and the descriptors received with it."""
        while True:
            for key, _ in self._selector.select():
                child: Child | None = key.data
                if child is None:
                    forked = self._accept()
                    if forked is not None:
                        return forked
                elif child.ended:
                    continue  # both of its descriptors were ready
                elif key.fileobj is child.connection:
                    self._forward_signals(child)
                else:
                    self._reap(child)

    def _accept(self) -> tuple[Request, list[int]] | None:
        connection, _ = self._listener.accept()
        connection.settimeout(REQUEST_TIMEOUT_S)
        try:
            request = self._read_request(connection)
            if self._import_for_ray(request.env):
                connection.sendall(READY)
                message, received, _, _ = socket.recv_fds(connection, 1, RESERVED_DESCRIPTORS)
                if message == COMMIT:
                    return self._fork(connection, request, received)
        except (OSError, ValueError) as error:
            log_message(f"dropped a client: {error}")
        connection.close()
        return None

    def _read_request(self, connection: socket.socket) -> Request:
        with connection.makefile("rb") as file:
            body = file.read(int.from_bytes(file.read(4), "big"))
        program, *state = json.loads(body)
        return Request(Program(*program), *state)

    def _import_for_ray(self, env: dict[str, str]) -> bool:
        """Import ray's modules in the environment of the first worker of Ray.

        Returns:
            Whether a fork can have this environment: any but that of a second job of Ray, whose variables ray would
            not read again.
        """
        job = env.get("RAY_JOB_ID")
        if job is None or job == self._ray_job:
            return True
        if self._ray_job is not None:
            return False
        self._ray_job = job
        set_environment({**env, **SERVER_ENV})
        import_modules(self._with_ray)
        return True

    def _fork(
        self, connection: socket.socket, request: Request, received: list[int]
    ) -> tuple[Request, list[int]] | None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the fork has its own handlers
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            set_parent_death_signal(signal.SIGKILL, server)
            connection.close()
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, int):
                    os.close(key.fileobj)
                else:
                    key.fileobj.close()
            self._selector.close()
            return request, received
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in received:
            os.close(fd)
        connection.settimeout(None)
        child = Child(pid, connection)
        self._selector.register(child.pidfd, self._read, child)
        self._selector.register(child.connection, self._read, child)
        return None

    def _forward_signals(self, child: Child) -> None:
        """Send the fork the signals that its client forwards, or SIGKILL when the client has ended."""
        try:
            numbers = child.connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self._selector.unregister(child.connection)
        for number in numbers or [signal.SIGKILL]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, number)

    def _reap(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        child.ended = True
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        if child.connection.fileno() in self._selector.get_map():
            self._selector.unregister(child.connection)
            with contextlib.suppress(OSError):
                child.connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        child.connection.close()


def set_parent_death_signal(number: int, parent: int) -> None:
    """Have the kernel send this process the signal ``number`` when its parent, of pid ``parent``, ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), number)


def set_environment(env: dict[str, str]) -> None:
    """Replace all environment variables."""
    os.environ.clear()
    os.environ.update(env)


def import_modules(modules: list[str]) -> None:
    """Import what can be imported; an error is logged and left to the program that needs the module.

    Raises:
        RuntimeError: an import started a thread, so forks would be unsafe.
    """
    import gc
    import importlib

    # Occupies the low numbers, so that what the modules open does not collide with the descriptors of clients.
    held = [os.dup(0)]
    while held[-1] < RESERVED_DESCRIPTORS:
        held.append(os.dup(0))
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            log_message(f"did not preload {name}: {error!r}")
    for fd in held:
        os.close(fd)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all these objects
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"importing {', '.join(modules)} left {threads} threads running")


def run_server(directory: str, listener_fd: int, parent: int, modules: list[str], with_ray: list[str]) -> None:
    """Serve until the process ``parent`` ends. Returns in the forks only, when their program has run.

    Args:
        directory: removed at the end.
        listener_fd: the inherited listening socket.
        parent: pid of the launcher, later the command.
        modules: to import at once; none may import ray.
        with_ray: to import when the first worker of Ray asks for a fork.
    """
    import shutil

    def stop(*_: Any) -> NoReturn:
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)  # the forks are killed by their parent-death signal

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # sglang's workers, when they fail, send it to their parent
    set_parent_death_signal(signal.SIGTERM, parent)
    sys.path.pop(0)  # this file's directory, whose modules would hide others of the same names
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [entry for entry in sys.path if entry not in inherited]
    listener = socket.socket(fileno=listener_fd)
    listener.set_inheritable(False)
    try:
        import_modules(modules)
        if "ray" in sys.modules:
            raise RuntimeError(f"one of {', '.join(modules)} imports ray")
        request, received = Server(listener, with_ray).serve_until_forked()
    except RuntimeError as error:
        log_message(f"server stops: {error}")
        stop()
    adopt_client_state(request, received)
    run_program(request.program, path, os.path.join(directory, "python"))


# A fork.


def adopt_client_state(request: Request, received: list[int]) -> None:
    """Give this fork the process state of its client."""
    _place_descriptors(request.descriptors, received)
    os.setsid()
    set_environment(request.env)
    os.chdir(request.cwd)
    for number in FORWARDED_SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request.ignored else default)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
    sys.dont_write_bytecode = not request.program.bytecode
    _open_streams(request.program.unbuffered)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python reseeds its own generator after a fork; torch has a fixed seed in every process
    if torch := sys.modules.get("torch"):
        threads = request.env.get("OMP_NUM_THREADS", "").split(",")[0]
        torch.set_num_threads(int(threads) if threads.isdecimal() else os.cpu_count() or 1)


def _place_descriptors(wanted: list[int], received: list[int]) -> None:
    """Give the received descriptors the numbers they had in the client."""
    import fcntl

    above = max([2, *wanted, *received]) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in received]
    for fd in {0, 1, 2, *received}:
        os.close(fd)
    for fd, number in zip(moved, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def _open_streams(unbuffered: bool) -> None:
    """Open the standard streams anew: their buffering depends on whether the client's descriptors are terminals."""
    import io

    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, f"__{name}__")
        writes = fd > 0
        try:
            raw = open(fd, "wb" if writes else "rb", buffering=0 if writes and unbuffered else -1, closefd=False)
        except OSError:  # the client's is closed
            stream = None
        else:
            stream = io.TextIOWrapper(
                raw,
                encoding=old.encoding,
                errors=old.errors,
                line_buffering=name == "stderr" or raw.isatty(),
                write_through=writes and unbuffered,
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_program(program: Program, path: list[str], executable: str) -> None:
    """Run the program as ``__main__``, as the interpreter does.

    Args:
        program: what to run.
        path: the server's ``sys.path`` without PYTHONPATH, which the client may have set differently.
        executable: what multiprocessing's "spawn" starts.
    """
    import builtins
    import multiprocessing
    import runpy
    import types

    multiprocessing.set_executable(executable)
    kind, target, args = program[:3]
    first = {"-c": "", "-m": os.getcwd(), "script": os.path.dirname(os.path.realpath(target))}[kind]
    sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    sys.argv = [kind if kind == "-c" else target, *args]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if kind == "-m":
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(target, "<string>", "exec"), main.__dict__)
    else:
        main.__file__ = target
        with open(target, "rb") as file:
            code = compile(file.read(), target, "exec")
        exec(code, main.__dict__)


# The launcher.


def start_server(
    preload: str = PRELOAD, preload_with_ray: str = PRELOAD_WITH_RAY, ready_timeout_s: float = READY_TIMEOUT_S
) -> str:
    """Start a server that ends with this process.

    Args:
        preload: comma-separated modules to import at once; none may import ray.
        preload_with_ray: comma-separated modules to import when the first worker of Ray asks for a fork.
        ready_timeout_s: how long a client waits for these imports before it runs a regular Python.

    Returns:
        Path of the client, the executable to use in place of python.
    """
    import shlex
    import subprocess
    import tempfile

    directory = tempfile.mkdtemp(prefix="warm-python-")
    socket_path, executable = os.path.join(directory, "socket"), os.path.join(directory, "python")
    this_file = os.path.abspath(__file__)
    client = shlex.join([sys.executable, "-IS", this_file, "client", socket_path, str(ready_timeout_s)])
    with open(executable, "w") as file:
        file.write(f'#!/bin/sh\nexec {client} "$@"\n')
    os.chmod(executable, 0o700)
    # The socket is opened here, so that a client that is earlier than the server waits instead of failing.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen(1024)
        fd = listener.fileno()
        command = [sys.executable, this_file, "serve", directory, str(fd), str(os.getpid()), preload, preload_with_ray]
        env = {**os.environ, **SERVER_ENV}
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=env, pass_fds=[fd], start_new_session=True)
    return executable


def has_accelerator() -> bool:
    """Whether verl would choose a platform other than "cpu"; in doubt True, which means no server.

    verl asks torch.cuda and the vendors' tools; importing verl or torch for that would take seconds.
    """
    import importlib.util
    import shutil

    chosen = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if chosen:
        return chosen != "cpu"
    folders = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin", "/usr/local/cuda/bin", "/opt/rocm/bin"]
    )
    return (
        any(shutil.which(tool, path=folders) for tool in ("nvidia-smi", "rocm-smi"))
        or any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
        or importlib.util.find_spec("torch_npu") is not None
    )


def should_start_server(command: list[str]) -> bool:
    """Whether the command starts a Ray of its own on a machine where forks are safe, and chooses no Python itself."""
    chosen = any(EXECUTABLE_KEY in argument or "ray_init.address=" in argument for argument in command)
    own_ray = os.environ.get("RAY_ADDRESS", "") in ("", "local")
    return sys.platform == "linux" and not chosen and own_ray and not has_accelerator()


def run_with_server(command: list[str]) -> NoReturn:
    """Replace this process by the command (exec), with a server as its child where that is of use.

    Raises:
        OSError: the command cannot be executed.
    """
    if should_start_server(command):
        command = [*command, f"{EXECUTABLE_KEY}={start_server()}"]
    os.execvp(command[0], command)


def main(argv: list[str]) -> None:
    """Command line: ``run`` is for users, ``client`` and ``serve`` are what :func:`start_server` starts."""
    match argv:
        case ["client", socket_path, ready_timeout_s, *rest]:
            run_client(socket_path, float(ready_timeout_s), rest)
        case ["serve", directory, fd, parent, modules, with_ray]:
            run_server(directory, int(fd), int(parent), modules.split(","), with_ray.split(","))
        case ["run", "--", _, *_]:
            try:
                run_with_server(argv[2:])
            except OSError as error:
                sys.exit(f"warm_python: cannot run {argv[2]}: {error}")
        case _:
            sys.exit("usage: python recipes/demo/warm_python.py run -- COMMAND [ARGUMENT ...]")


if __name__ == "__main__":
    main(sys.argv[1:])
