"""What a manifest says about a Modbus device and its registers: upstream's keys (DMI contract 6.1) and our own.

Addresses are PDU addresses and count from 0: register 40001 is `HoldingRegister` with `offset: 0`. What these structs
alone cannot refuse, `checks` does.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mappers.sdk import ConfigError

__all__ = [
    "ADDRESSES",
    "BITS",
    "DEFAULT_TIMEOUT_MS",
    "MAX_BITS",
    "MAX_REGISTERS",
    "READ_CODES",
    "SERIAL",
    "ByteOrder",
    "DataType",
    "ModbusConfig",
    "ModbusVisitor",
    "Mode",
    "Register",
    "WriteFunction",
    "parse_mode",
]

Mode = Literal["TCP", "TLS", "UDP", "RTU", "RTUOVERTCP", "ASCII"]
"""How frames travel. RTU and ASCII are serial lines, the others networks."""
Parity = Literal["", "none", "even", "odd", "N", "E", "O"]
Register = Literal["CoilRegister", "DiscreteInputRegister", "InputRegister", "HoldingRegister"]
DataType = Literal[
    "", "int", "int16", "int32", "int64", "uint16", "uint32", "uint64",
    "float", "float32", "double", "float64", "bcd", "string", "boolean", "bool", "bytes",
]  # fmt: skip
ByteOrder = Literal[
    "", "AB", "BA", "ABCD", "BADC", "CDAB", "DCBA",
    "ABCDEFGH", "BADCFEHG", "CDABGHEF", "DCBAHGFE", "EFGHABCD", "FEHGBADC", "GHEFCDAB", "HGFEDCBA",
]  # fmt: skip
WriteFunction = Literal["auto", "single", "multiple", "mask", "readWrite"]

SERIAL: Final[frozenset[Mode]] = frozenset({"RTU", "ASCII"})
MAX_REGISTERS: Final = 125
"""Registers in one read (MODBUS Application Protocol V1.1b3, 6.3)."""
MAX_BITS: Final = 2000
"""Coils or discrete inputs in one read (V1.1b3, 6.1)."""
ADDRESSES: Final = 65_536
DEFAULT_TIMEOUT_MS: Final = 2000
BITS: Final[frozenset[Register]] = frozenset({"CoilRegister", "DiscreteInputRegister"})
READ_CODES: Final[dict[Register, int]] = {
    "CoilRegister": 1,
    "DiscreteInputRegister": 2,
    "HoldingRegister": 3,
    "InputRegister": 4,
}
"""Function codes that read each kind."""

_MODES: Final[dict[str, Mode]] = {
    "TCP": "TCP",
    "TLS": "TLS",
    "UDP": "UDP",
    "RTU": "RTU",
    "RTUOVERTCP": "RTUOVERTCP",
    "ASCII": "ASCII",
}


def parse_mode(text: str) -> Mode:
    """`communicateMode` in any case, with or without dashes: `RTU-over-TCP` is `RTUOVERTCP`.

    Raises:
        ConfigError: There is no such mode.
    """
    mode = _MODES.get(text.strip().upper().translate({ord(c): None for c in "-_ "}))
    if mode is None:
        raise ConfigError("communicateMode", f"{text[:64]!r} is not one of TCP, TLS, UDP, RTU, RTUOverTCP, ASCII")
    return mode


class ModbusConfig(Struct, frozen=True):
    """How to reach a device: `spec.protocol.configData`."""

    ip: str = ""
    """Address or host name; for every mode but RTU and ASCII."""
    communicate_mode: str = msgspec.field(default="", name="communicateMode")
    """`TCP`, `TLS` (Modbus/TCP Security), `UDP`, `RTU` (serial), `RTUOverTCP` (RTU frames through a serial server) or
    `ASCII` (serial), in any case. Left out: TCP if there is an `ip`, RTU if there is a `serialName`."""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """Left out: 502, for TLS 802."""
    slave_id: Annotated[int, Meta(ge=0, le=255)] = msgspec.field(default=0, name="slaveID")
    """The unit. 0, upstream's default, is answered by most TCP devices that are no gateway. On a serial line 0 is the
    broadcast address: every device takes the writes and none answers."""
    timeout: Annotated[int, Meta(ge=0, le=25_000)] = DEFAULT_TIMEOUT_MS
    """Milliseconds for a connect and for each request, at least 50 and at most 25,000, as a call has 30 s in all.
    Upstream declares the key, without a unit, and does not use it; so less than 50, which no one can mean in
    milliseconds, is warned about and counts as left out."""
    serial_name: str = msgspec.field(default="", name="serialName")
    """The serial port of RTU and ASCII, such as `/dev/ttyUSB0`. Only one process has it. An adapter that gives back
    what is sent, as some two-wire RS-485 ones do, is noticed, and its echo is not taken for a reply."""
    baud_rate: Annotated[int, Meta(ge=50, le=4_000_000)] = msgspec.field(default=9600, name="baudRate")
    """Bits per second."""
    data_bits: Annotated[int, Meta(ge=5, le=8)] = msgspec.field(default=8, name="dataBits")
    """8 for RTU, 7 or 8 for ASCII."""
    stop_bits: Annotated[int, Meta(ge=1, le=2)] = msgspec.field(default=1, name="stopBits")
    """1; without parity the standard wants 2, which few devices do."""
    parity: Parity = "none"
    """`none`, `even` or `odd`, or their first letters, in any case."""
    rs485_enabled: bool = msgspec.field(default=False, name="rs485Enabled")
    """Let the kernel switch the transceiver's direction (RS-485 mode of the serial port)."""
    ca_file: str = msgspec.field(default="", name="caFile")
    """TLS: PEM file of the CA that signed the device's certificate. Left out: the system's CAs."""
    cert_file: str = msgspec.field(default="", name="certFile")
    """TLS: PEM file of our own certificate, which Modbus/TCP Security asks for."""
    key_file: str = msgspec.field(default="", name="keyFile")
    """TLS: PEM file of the private key of `certFile`."""
    server_name: str = msgspec.field(default="", name="serverName")
    """TLS: the name the device's certificate must carry. Left out: `ip`."""
    inter_frame_delay: Annotated[int, Meta(ge=0, le=1000)] = msgspec.field(default=0, name="interFrameDelay")
    """Milliseconds of silence the device wants between a reply and the next request on its line."""
    max_registers: Annotated[int, Meta(ge=1, le=MAX_REGISTERS)] = msgspec.field(
        default=MAX_REGISTERS, name="maxRegisters"
    )
    """Registers the device takes in one read, where it is fewer than the protocol's; of bits 16 times as many. A
    property wider than this is still read in one piece."""
    max_gap: Annotated[int, Meta(ge=0, le=MAX_REGISTERS)] = msgspec.field(default=8, name="maxGap")
    """Unwanted registers that are read along to save a request; of bits 16 times as many. 0: none."""
    share_connection: bool = msgspec.field(default=True, name="shareConnection")
    """Network modes: devices with the same `ip` and `port` share one connection, one request at a time, as a gateway
    wants it. False: a connection of its own for this device."""
    discover_units: str = msgspec.field(default="", name="discoverUnits")
    """Only for `discover`: units to look for, such as `1-10,20`. Left out: `slaveID` if it is not 0, or else 1-247.
    A serial port that a mapper has open is refused: stop the mapper first."""
    discover_registers: str = msgspec.field(default="0-255", name="discoverRegisters")
    """Only for `discover`: addresses to look at in each kind of register, such as `0-99,1000-1099`."""

    @property
    def mode(self) -> Mode:
        """`communicateMode`, understood.

        Raises:
            ConfigError: There is no such mode, or it is left out and does not follow from the rest.
        """
        if self.communicate_mode.strip():
            return parse_mode(self.communicate_mode)
        if self.ip.strip() and self.serial_name.strip():
            raise ConfigError("communicateMode", "is missing: with both ip and serialName, say which it is, TCP or RTU")
        if self.serial_name.strip():
            return "RTU"
        if self.ip.strip():
            return "TCP"
        raise ConfigError("ip", "is missing: the device's address, or serialName for a serial line")

    @property
    def endpoint(self) -> tuple[str, int]:
        """`ip` and `port`, with the mode's default port."""
        return self.ip.strip(), self.port if self.port is not None else 802 if self.mode == "TLS" else 502


class ModbusVisitor(Struct, frozen=True):
    """Where one property lives on the device: `spec.properties[].visitors.configData`.

    Read: registers, put in order (`isSwap`, `isRegisterSwap` or `byteOrder`), taken as `dataType`; reported is
    raw × `scale` + `bias`. Written: the exact inverse.
    """

    register: Register
    """`HoldingRegister` (read with function 3), `InputRegister` (4, read only), `CoilRegister` (1) or
    `DiscreteInputRegister` (2, read only), in any case."""
    offset: Annotated[int, Meta(ge=0, le=ADDRESSES - 1)]
    """The first register's PDU address, from 0: register 40001 is 0."""
    limit: Annotated[int, Meta(ge=0, le=MAX_BITS)] = 0
    """Registers or bits the property takes; 0: as many as its type needs."""
    scale: Decimal = Decimal(1)
    """0 counts as 1, as manifests in use have it. May be negative."""
    is_swap: bool = msgspec.field(default=False, name="isSwap")
    """Swap the two bytes of each register."""
    is_register_swap: bool = msgspec.field(default=False, name="isRegisterSwap")
    """Reverse the order of all the property's registers."""
    data_type: DataType = msgspec.field(default="", name="dataType")
    """What the registers hold. Left out: what the model's type and `limit` suggest.

    `int`, `uint16`, `uint32`, `uint64`: unsigned (upstream's `int` is; of 1, 2 or 4 registers); `int16`, `int32`,
    `int64`: two's complement; `float`, `float32` and `double`, `float64`: IEEE 754, but `float` and `double` with
    `limit: 1` are an unsigned whole number times `scale`, as in upstream's samples; `bcd`: four decimal digits a
    register, of 1, 2 or 4 registers; `string`: UTF-8, padded with zero bytes; `bytes`; `boolean`, `bool`: a coil, the
    `bit` of a register, or else whether any bit of the register is set. Coils and discrete inputs hold `boolean` or
    `int`, the first bit the lowest."""
    bias: Decimal = Decimal(0)
    """Added to raw × `scale`, in the property's unit. (`offset` is the address.)"""
    byte_order: ByteOrder = msgspec.field(default="", name="byteOrder")
    """In place of `isSwap` and `isRegisterSwap`, for numbers: the bytes as they come off the wire, A the most
    significant, as many letters as the number has bytes. `ABCD` is the protocol's own order, `CDAB` has the registers
    reversed, `BADC` the bytes in each, `DCBA` both; of 8 bytes, `EFGHABCD` has the two halves exchanged."""
    bit: Annotated[int, Meta(ge=0, le=15)] | None = None
    """The property is this bit of one register, 0 the lowest, after the bytes are put in order."""
    bit_count: Annotated[int, Meta(ge=1, le=16)] = msgspec.field(default=1, name="bitCount")
    """With `bit` and `int`: a number of that many bits, of which `bit` is the lowest."""
    write_function: WriteFunction = msgspec.field(default="auto", name="writeFunction")
    """How it is written. `auto`: function 5 or 6 for one coil or register, 15 or 16 for several, 22 for a `bit`.
    `single`: 5 or 6. `multiple`: 15 or 16, also for one. `mask`: 22, for a `bit`, which changes no other bit whoever
    else writes. `readWrite`: 23, which writes and reads back in one request. With `bit`, `single` and `multiple` are
    for devices without function 22: the register is read, changed and written, and what another master writes to it in
    between is lost."""

    @property
    def is_bits(self) -> bool:
        """Coils or discrete inputs, not registers."""
        return self.register in BITS

    @property
    def is_writable(self) -> bool:
        return self.register in ("CoilRegister", "HoldingRegister")

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.offset + self.limit
