"""The program of the child process that runs FastDeploy 1.x: needs Python 3.8 or newer, NumPy and fastdeploy.

It is started as a file by whatever interpreter has fastdeploy, and so imports nothing of this library. Three
descriptors come as arguments: a socket for requests and answers, the reading end of a pipe that only the parent can
write to, and memory that both sides see.

A message is four bytes, its length in big-endian order, and that many bytes of JSON. Requests::

    {"op": "start"}                                    import fastdeploy and say what it is
    {"op": "open", "runtime": "ort", "model": ...}     load the graph
    {"op": "run", "inputs": [...], "outputs": [...]}   one step; an entry is [name, dtype, shape, offset in the memory]

An answer is ``{"ok": {...}}`` or ``{"error": sentence}``. Where the socket ends, so does the child.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import sys
from typing import Any

Message = Any  # {"op": ...}: typing.Dict means little more, and the built-in cannot be subscripted at run time in 3.7


def main() -> None:
    """Be the child that runs FastDeploy."""
    del sys.path[0]  # the folder of this file, whose modules are not meant to be imported by their names
    serve(Server)


def serve(make: Any) -> None:
    """Answer requests by the methods of what ``make`` gives for the memory, until there is nobody left to ask."""
    end_with_parent(int(sys.argv[2]))
    connection = socket.socket(fileno=int(sys.argv[1]))
    memory = int(sys.argv[3])
    server = make(mmap.mmap(memory, os.fstat(memory).st_size))
    while True:
        request = receive(connection)
        if request is None:
            return
        operation = getattr(server, request.pop("op"))
        send(connection, answer(operation, request))


def answer(operation: Any, arguments: Message) -> Message:
    """Return what an operation gives, or why it failed."""
    try:
        return {"ok": operation(**arguments)}
    except Exception as error:  # whatever fastdeploy raises is for the parent to tell
        return {"error": f"{type(error).__name__}: {error}"}


def end_with_parent(pipe: int) -> None:
    """Have the system kill this process group when the pipe's other end closes, whatever is being computed then.

    Linux signals a reader that asked for it when the last writer is gone; elsewhere the end of the socket has to do.
    """
    try:
        import fcntl
        import select

        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgid(0))
        fcntl.fcntl(
            pipe, getattr(fcntl, "F_SETSIG", 10), signal.SIGKILL
        )  # 10: unnamed in older Pythons on Linux
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        return
    if select.select([pipe], [], [], 0)[0]:  # it is gone already
        os._exit(1)


def receive(connection: socket.socket) -> Message:
    """Return a message, None at the end."""
    head = read(connection, 4)
    body = head and read(connection, struct.unpack(">I", head)[0])
    return json.loads(body.decode()) if body else None


def read(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes, none at the end."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


def send(connection: socket.socket, message: Message) -> None:
    """Send an answer."""
    body = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)


class Server:
    """What requests are about: memory, and one graph."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.inputs: Any = {}
        self.runtime: Any = None
        self.on_gpu = False

    def start(self) -> Message:
        """Import fastdeploy and say what it is."""
        import fastdeploy
        import numpy

        if "RuntimeOption" not in vars(fastdeploy):  # FastDeploy 2.x answers any name with None
            raise ImportError(f"the module fastdeploy at {fastdeploy.__file__} has no RuntimeOption")
        return {
            "fastdeploy": str(fastdeploy.__version__),
            "numpy": numpy.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        }

    def open(
        self, runtime: str, model: str, threads: int, device: int | None = None, tensorrt: Any = None
    ) -> Message:
        """Load an ONNX file; return the names of its inputs and outputs."""
        import fastdeploy

        option = fastdeploy.RuntimeOption()
        if device is None:
            option.use_cpu()
            option.set_cpu_thread_num(threads)
        else:
            option.use_gpu(device)
        if runtime == "ort":
            option.use_ort_backend()
        elif runtime == "openvino":
            option.use_openvino_backend()
        else:
            option.use_trt_backend()
            set_tensorrt(option.trt_option, **tensorrt)
        os.chdir(
            os.path.dirname(model)
        )  # ONNX Runtime, which is given bytes, looks for files of weights there
        option.set_model_path(model, model_format=fastdeploy.ModelFormat.ONNX)
        self.runtime = fastdeploy.Runtime(option)
        self.on_gpu = device is not None
        return {"inputs": self.names("input"), "outputs": self.names("output")}

    def run(self, inputs: Any, outputs: Any) -> Message:
        """Compute one step and leave the outputs where the parent wants them."""
        self.inputs = {entry[0]: self.view(*entry[1:]) for entry in inputs}
        found = self.copied() if self.on_gpu else self.bound([entry[0] for entry in outputs])
        for name, *where in outputs:
            result, target = found[name], self.view(*where)
            if result.shape != target.shape or result.dtype != target.dtype:
                raise ValueError(
                    f"output {name!r} is {result.dtype} {result.shape} and should be {target.dtype} {target.shape}"
                )
            target[...] = result
        return {}

    def names(self, kind: str) -> Any:
        """Return the names of inputs or outputs, in the graph's order."""
        info = getattr(self.runtime, f"get_{kind}_info")
        return [info(i).name for i in range(getattr(self.runtime, f"num_{kind}s")())]

    def view(self, dtype: str, shape: Any, offset: int) -> Any:
        """Return an array in the memory."""
        import numpy

        return numpy.ndarray(shape, dtype, self.memory, offset)

    def bound(self, names: Any) -> Any:
        """Run on the inputs where they lie."""
        from fastdeploy.c_lib_wrap import FDTensor

        for name, values in self.inputs.items():
            tensor = FDTensor()
            tensor.from_numpy(values, True)  # True: shares the memory
            self.runtime.bind_input_tensor(name, tensor)
        self.runtime.zero_copy_infer()
        return {name: self.runtime.get_output_tensor(name).numpy() for name in names}

    def copied(self) -> Any:
        """Run on copies of the inputs; outputs that are bound would stay on the device."""
        results = self.runtime.infer(dict(self.inputs))
        names = self.names("output")
        if len(results) != len(names):
            raise ValueError(f"{len(results)} outputs came and should be {len(names)}")
        return {name: results[i] for i, name in enumerate(names)}


def set_tensorrt(option: Any, profile: Any, fp16: bool, workspace: int, cache_file: str | None) -> None:
    """Apply TensorRT's settings; ``profile`` has the least, best and greatest shape of each input."""
    for name, (least, best, greatest) in profile.items():
        option.set_shape(name, least, best, greatest)
    option.enable_fp16 = fp16
    option.max_workspace_size = workspace
    if cache_file is not None:
        option.serialize_file = cache_file


if __name__ == "__main__":
    main()
