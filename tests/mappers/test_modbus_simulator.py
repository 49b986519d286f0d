"""The simulator against pymodbus' own clients: every mode, every fault."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymodbus.client import (
    AsyncModbusSerialClient,
    AsyncModbusTcpClient,
    AsyncModbusTlsClient,
    AsyncModbusUdpClient,
)
from pymodbus.client.base import ModbusBaseClient
from pymodbus.exceptions import ModbusIOException
from pymodbus.framer import FramerType

from dmi.errors import ConfigError
from mappers.drivers.modbus.settings import Mode
from mappers.drivers.modbus.simulator import Faults, Image, Scene, Simulator, parse_faults
from mappers.drivers.modbus.simulator.control import control, obey, send
from mappers.drivers.modbus.simulator.memory import Memory

TCP_MODES: tuple[Mode, ...] = ("TCP", "TLS", "UDP", "RTUOVERTCP", "RTU", "ASCII")
IMAGE = Image(
    coils={3: True, 4: False, 5: True},
    discrete_inputs={0: True},
    holding_registers={0: 215, 1: 2, 40: 7},
    input_registers={9: 0xFFFF},
    identity={0: "Acme", 1: "M1", 2: "1.0", 4: "Meter"},
)


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("127.0.0.1").configure_cert(server)
    ca.configure_trust(client)
    return server, client


@asynccontextmanager
async def connected(
    simulator: Simulator, tls: ssl.SSLContext | None = None, timeout_s: float = 10.0
) -> AsyncIterator[ModbusBaseClient]:
    client: ModbusBaseClient
    options: Any = {"timeout": timeout_s, "retries": 0, "reconnect_delay": 0}
    match simulator.mode:
        case "TLS":
            assert tls is not None
            client = AsyncModbusTlsClient("127.0.0.1", port=simulator.port, sslctx=tls, **options)
        case "UDP":
            client = AsyncModbusUdpClient("127.0.0.1", port=simulator.port, **options)
        case "RTU" | "ASCII":
            framer = FramerType.RTU if simulator.mode == "RTU" else FramerType.ASCII
            client = AsyncModbusSerialClient(simulator.address, framer=framer, **options)
        case mode:
            framer = FramerType.RTU if mode == "RTUOVERTCP" else FramerType.SOCKET
            client = AsyncModbusTcpClient("127.0.0.1", port=simulator.port, framer=framer, **options)
    try:
        assert await client.connect()
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("mode", TCP_MODES)
async def test_every_function_over_every_mode(mode: Mode, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server_tls, client_tls = certificates
    async with (
        Simulator(units={1: IMAGE}, mode=mode, tls=server_tls) as simulator,
        connected(simulator, client_tls) as client,
    ):
        assert (await client.read_coils(3, count=3, device_id=1)).bits[:3] == [True, False, True]
        assert (await client.read_discrete_inputs(0, count=1, device_id=1)).bits[0] is True
        assert (await client.read_holding_registers(0, count=2, device_id=1)).registers == [215, 2]
        assert (await client.read_input_registers(9, count=1, device_id=1)).registers == [0xFFFF]
        await client.write_coil(4, True, device_id=1)
        await client.write_coils(3, [False, True, False], device_id=1)
        await client.write_register(40, 0x00F2, device_id=1)
        await client.mask_write_register(address=40, and_mask=0x00F0, or_mask=0x0005, device_id=1)
        await client.write_registers(0, [8, 9], device_id=1)
        reply = await client.readwrite_registers(
            read_address=0, read_count=2, write_address=1, values=[77], device_id=1
        )
        assert reply.registers == [8, 77]
        assert await simulator.read("CoilRegister", 3, 3, unit=1) == [0, 1, 0]
        assert await simulator.read("HoldingRegister", 40, unit=1) == [0x00F5]
        refused = await client.read_holding_registers(2, count=1, device_id=1)
        assert refused.exception_code == 2
        identity = await client.read_device_information(read_code=2, object_id=0, device_id=1)
        assert getattr(identity, "information", None) == {0: b"Acme", 1: b"M1", 2: b"1.0", 4: b"Meter"}
        once = dict.fromkeys(((1, f) for f in (1, 2, 4, 5, 15, 6, 22, 16, 23, 43)), 1)
        assert simulator.requests == {**once, (1, 3): 2}
        assert [r.address for r in simulator.log][:4] == [3, 0, 0, 9]


async def test_a_unit_that_is_not_there() -> None:
    async with Simulator(units={1: IMAGE}) as simulator, connected(simulator) as client:
        assert (await client.read_holding_registers(0, device_id=9)).exception_code == 11
    async with Simulator(units={1: IMAGE}, mode="RTU") as simulator, connected(simulator, timeout_s=0.05) as client:
        with pytest.raises(ModbusIOException, match="No response"):
            await client.read_holding_registers(0, device_id=9)


async def test_a_broadcast_reaches_every_unit_and_no_one_answers() -> None:
    units = {1: IMAGE, 2: IMAGE}
    async with Simulator(units=units, mode="RTU") as simulator, connected(simulator) as client:
        await client.write_register(0, 5, device_id=0, no_response_expected=True)
        await asyncio.sleep(0.1)  # the turnaround delay of the standard
        assert (await client.read_holding_registers(0, device_id=2)).registers == [5]
        assert await simulator.read("HoldingRegister", 0, unit=1) == [5]


async def test_a_pseudo_terminal_outlives_its_clients() -> None:
    async with Simulator(units={1: IMAGE}, mode="RTU") as simulator:
        for _ in range(2):
            async with connected(simulator) as client:
                assert (await client.read_holding_registers(0, device_id=1)).registers == [215]


async def test_half_a_frame_on_a_bus_does_not_spoil_the_next() -> None:
    async with Simulator(units={1: IMAGE}, mode="RTUOVERTCP") as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(bytes.fromhex("0103000000"))
        await asyncio.sleep(0.2)
        writer.write(bytes.fromhex("010300000001840a"))
        async with asyncio.timeout(10):
            assert await reader.readexactly(7) == bytes.fromhex("01030200d7f81a")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("mode", ("TCP", "RTUOVERTCP"))
async def test_garbage_from_a_client_is_survived(mode: Mode) -> None:
    rng = random.Random(5)
    async with Simulator(units={1: IMAGE}, mode=mode) as simulator:
        for _ in range(60):
            _, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
            writer.write(rng.randbytes(rng.randrange(1, 300)))
            writer.close()
        async with connected(simulator) as client:
            assert (await client.read_holding_registers(0, device_id=1)).registers == [215]


async def test_a_garbled_datagram_does_not_spoil_the_next() -> None:
    async with Simulator(units={1: IMAGE}, mode="UDP") as simulator, connected(simulator) as client:
        client.ctx.send(b"\0\1\0\0\0\6\1")
        await asyncio.sleep(0.05)
        assert (await client.read_holding_registers(0, device_id=1)).registers == [215]


async def test_what_is_no_modbus_is_hung_up_on() -> None:
    async with Simulator(units={1: IMAGE}) as simulator:
        assert await raw(simulator, b"GET / HTTP/1.1".hex()) == b"END"


async def test_a_taken_port_and_a_missing_serial_port_are_os_errors() -> None:
    from mappers.drivers.modbus.simulator import SerialPort

    async with Simulator(units={1: IMAGE}) as simulator:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{simulator.port}"):
            async with Simulator(port=simulator.port, units={1: IMAGE}):
                pass
    with pytest.raises(OSError, match="nowhere"):
        async with Simulator(mode="RTU", serial=SerialPort("/dev/nowhere")):
            pass


async def test_a_real_serial_port_is_served() -> None:
    """Two simulators at the two ends of a line would not do; a pseudo-terminal's far end is port enough."""
    import os
    import tty

    from mappers.drivers.modbus.simulator import SerialPort

    ours, theirs = os.openpty()
    try:
        tty.setraw(theirs)
        path = os.ttyname(theirs)
        async with Simulator(units={1: IMAGE}, mode="RTU", serial=SerialPort(path)) as simulator:
            assert simulator.address == path
            await asyncio.sleep(0)  # the port is set up in the next round
            os.write(ours, bytes.fromhex("010300000001840a"))
            answered = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours, answered.set)
            async with asyncio.timeout(10):
                await answered.wait()
            asyncio.get_running_loop().remove_reader(ours)
            assert os.read(ours, 7) == bytes.fromhex("01030200d7f81a")
    finally:
        os.close(ours)
        os.close(theirs)


# faults


async def ask(simulator: Simulator, unit: int = 1, address: int = 0, count: int = 1, timeout_s: float = 0.1) -> str:
    """What a client makes of one read: registers, the exception code, or the class of the error."""
    async with connected(simulator, timeout_s=timeout_s) as client:
        try:
            reply = await client.read_holding_registers(address, count=count, device_id=unit)
        except ModbusIOException as error:
            return error.string
        return str(reply.exception_code or list(reply.registers))


async def raw(simulator: Simulator, request: str = "000100000006010300000001") -> bytes:
    """What comes back for the raw bytes of a request, until half a second of silence or the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(bytes.fromhex(request))
    received = b""
    try:
        async with asyncio.timeout(0.5):
            while data := await reader.read(512):
                received += data
        received += b"END"
    except TimeoutError:
        received += b"..."
    except ConnectionError:
        received += b"END"
    writer.close()
    return received


GOOD = bytes.fromhex("00010000000501030200d7")


@pytest.mark.parametrize(
    ("fault", "comes_back"),
    (
        ("", GOOD + b"..."),
        ("drop=1", b"..."),
        ("disconnect=1", b"END"),
        ("short=1", GOOD[:5] + b"..."),
        ("wrong-unit=1", GOOD[:6] + b"\x02" + GOOD[7:] + b"..."),
        ("wrong-transaction=1", b"\x03\xe9" + GOOD[2:] + b"..."),
        ("exception=4@0", bytes.fromhex("000100000003018304") + b"..."),
        ("exception=4@InputRegister:0", GOOD + b"..."),
        ("exception=6@HoldingRegister:*", bytes.fromhex("000100000003018306") + b"..."),
        ("exception=4@1", GOOD + b"..."),
        ("refuse-function=3", bytes.fromhex("000100000003018301") + b"..."),
        ("silent-unit=1", b"..."),
        ("silent-unit=2", GOOD + b"..."),
        ("delay=20ms", GOOD + b"..."),
    ),
)
async def test_each_fault_as_it_arrives(fault: str, comes_back: bytes) -> None:
    async with Simulator(units={1: IMAGE}, faults=parse_faults([fault])) as simulator:
        assert await raw(simulator) == comes_back
        struck = sum(simulator.faults.seen.values())
        assert struck == (0 if comes_back == GOOD + b"..." and "delay" not in fault else 1)


async def test_garbage_is_as_long_as_the_reply_and_another_every_time() -> None:
    async with Simulator(units={1: IMAGE}, faults=Faults(garbage=1)) as simulator:
        first, second = await raw(simulator), await raw(simulator)
        assert first != second
        assert {len(first), len(second)} == {len(GOOD) + 3}


async def test_a_delay_holds_the_reply_back() -> None:
    async with Simulator(units={1: IMAGE}, faults=Faults(delay_s=30)) as simulator:
        assert await raw(simulator) == b"..."  # and leaving the block does not wait for the rest of it


async def test_a_device_that_takes_few_registers() -> None:
    async with Simulator(units={1: IMAGE}, faults=Faults(max_registers=1)) as simulator:
        assert await ask(simulator, count=2, timeout_s=10) == "3"
        assert await ask(simulator, count=1, timeout_s=10) == "[215]"


async def test_switches_are_turned_while_it_runs() -> None:
    async with Simulator(units={1: IMAGE}) as simulator:
        assert await ask(simulator, timeout_s=10) == "[215]"
        simulator.faults.exceptions[None, None] = 6
        assert await ask(simulator, timeout_s=10) == "6"
        simulator.faults.clear()
        assert await ask(simulator, timeout_s=10) == "[215]"
        assert simulator.faults.seen == {"exceptions": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    (
        ("nope=1", "nope: there is no such fault: there are delay"),
        ("drop=2", "drop: '2' is not a probability"),
        ("drop=nan", "drop: 'nan' is not a probability"),
        ("delay=soon", "delay: 'soon' is not a time"),
        ("exception=2", "exception: '2' is not CODE@ADDRESS"),
        ("exception=2@Foo:1", "not CODE@ADDRESS"),
        ("silent-unit=256", "not a unit"),
        ("silent-unit=inf", "not a unit"),
        ("max-registers=0", "from 1 to 125"),
    ),
)
def test_a_wrong_fault_says_what_would_be_right_and_switches_nothing(text: str, says: str) -> None:
    faults = Faults()
    with pytest.raises(ConfigError, match=says):
        parse_faults(["drop=0.5", text], faults)
    assert faults == Faults()


def test_faults_add_up() -> None:
    faults = parse_faults(["silent-unit=3, silent-unit=4", "delay=2s,exception=2@40,exception=4@coilregister:*"])
    assert faults == Faults(delay_s=2.0, silent_units={3, 4}, exceptions={(None, 40): 2, ("CoilRegister", None): 4})


# control, movement


async def test_the_control_socket_turns_switches_and_registers(tmp_path: Path) -> None:
    path = tmp_path / "control"
    async with Simulator(units={1: IMAGE}) as simulator:
        async with control(simulator, path):
            assert path.stat().st_mode & 0o777 == 0o600

            async def command(text: str) -> str:
                return await asyncio.to_thread(send, path, text)

            assert await command("set HoldingRegister 0 5,6 1") == "ok"
            assert await command("get holdingregister 0 2 1") == "ok 5,6"
            assert await command("fault exception=2@0") == "ok"
            assert await ask(simulator, timeout_s=10) == "2"
            assert '{"unit":1,"function":3,"requests":1}' in await command("stats")
            assert await command("clear") == "ok"
            assert await ask(simulator, timeout_s=10) == "[5]"
            with pytest.raises(OSError, match="another process listens"):
                async with control(simulator, path):
                    pass
        assert not path.exists()


@pytest.mark.parametrize(
    "line",
    ("", "get", "get Foo 0", "get HoldingRegister x", "get HoldingRegister 0 1 9", "get HoldingRegister 0 99999",
     "set HoldingRegister 0 70000 1", "set CoilRegister 3 2 1", "set HoldingRegister 0 1,,2", "fault drop=x", "quit"),
)  # fmt: skip
async def test_a_wrong_command_is_an_error_and_changes_nothing(line: str) -> None:
    async with Simulator(units={1: IMAGE}) as simulator:
        assert (await obey(simulator, line)).startswith("error ")
        assert await simulator.read("HoldingRegister", 0, 2, unit=1) == [215, 2]


async def test_a_socket_that_a_dead_process_left_is_taken_over_and_a_file_is_not(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with Simulator(units={1: IMAGE}) as simulator:
        async with control(simulator, path):
            assert await asyncio.to_thread(send, path, "clear") == "ok"
        path.write_text("mine")
        with pytest.raises(OSError, match="is no socket"):
            async with control(simulator, path):
                pass
        assert path.read_text() == "mine"
        with pytest.raises(OSError, match=r"control: cannot listen on .*/nowhere/x: No such"):
            async with control(simulator, tmp_path / "nowhere" / "x"):
                pass


class Counting:
    every_s = 0.01

    def __init__(self) -> None:
        self.moved = asyncio.Event()

    def move(self, memory: Memory, elapsed_s: float) -> None:
        (value,) = memory.read(1, "HoldingRegister", 0)
        memory.write(1, "HoldingRegister", 0, [value + 1])
        self.moved.set()


async def test_a_scene_moves_and_a_failing_one_is_heard_of() -> None:
    motion = Counting()
    async with Simulator(scene=Scene({1: IMAGE}, motion)) as simulator:
        async with asyncio.timeout(10):
            await motion.moved.wait()
        assert (await simulator.read("HoldingRegister", 0, unit=1))[0] > 215
    broken = Counting()
    with pytest.raises(KeyError):
        async with Simulator(scene=Scene({2: IMAGE}, broken)) as simulator:
            await asyncio.sleep(0.1)
