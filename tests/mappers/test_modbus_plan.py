from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mappers.drivers.modbus.plan import MAX_GAP, gaps, plan_reads
from mappers.drivers.modbus.settings import MAX_BITS, MAX_REGISTERS, ModbusVisitor, Register

REGISTERS: st.SearchStrategy[Register] = st.sampled_from(
    ["CoilRegister", "DiscreteInputRegister", "InputRegister", "HoldingRegister"]
)


@st.composite
def items(draw: st.DrawFn) -> list[tuple[str, ModbusVisitor]]:
    count = draw(st.integers(0, 40))
    near = draw(st.booleans())
    return [
        (
            f"p{i}",
            ModbusVisitor(
                draw(REGISTERS), draw(st.integers(0, 300 if near else 65000)), limit=draw(st.integers(1, 60))
            ),
        )
        for i in range(count)
    ]


@given(
    items(),
    st.sets(st.tuples(REGISTERS, st.integers(0, 300)), max_size=20),
    st.integers(60, MAX_REGISTERS),
    st.integers(0, 30),
)
def test_every_item_is_covered_once_and_no_limit_is_broken(
    wanted: list[tuple[str, ModbusVisitor]], holes: set[tuple[Register, int]], most: int, gap: int
) -> None:
    plan = plan_reads(wanted, holes=holes, most=most, gap=gap)
    assert sorted(name for r in plan for name, _ in r.items) == sorted(name for name, _ in wanted)
    for request in plan:
        bits = request.register in ("CoilRegister", "DiscreteInputRegister")
        assert 1 <= request.count <= (min(16 * most, MAX_BITS) if bits else most)
        assert request.start == min(v.offset for _, v in request.items)
        assert request.end == max(v.end for _, v in request.items)
        assert all(v.register == request.register for _, v in request.items)
        if len(request.items) > 1:
            assert not any((request.register, a) in holes for a in range(request.start, request.end))
        covered = {a for _, v in request.items for a in range(v.offset, v.end)}
        assert len(covered) + len(list(gaps(request))) == request.count
        between = sorted({address for _, address in gaps(request)})
        longest = gap * (16 if bits else 1)
        assert not any(between[i + longest] - between[i] == longest for i in range(len(between) - longest))


@given(st.integers(1, 1000))
def test_a_dense_map_takes_the_fewest_requests(count: int) -> None:
    dense = [(f"p{i}", ModbusVisitor("HoldingRegister", i, limit=1)) for i in range(count)]
    assert len(plan_reads(dense)) == -(-count // MAX_REGISTERS)


def test_a_small_gap_is_read_along_and_a_large_one_is_not() -> None:
    def at(*offsets: int) -> int:
        return len(plan_reads((str(o), ModbusVisitor("InputRegister", o, limit=1)) for o in offsets))

    assert at(0, 1 + MAX_GAP) == 1
    assert at(0, 2 + MAX_GAP) == 2


def test_kinds_are_never_mixed() -> None:
    plan = plan_reads([("a", ModbusVisitor("InputRegister", 0, 1)), ("b", ModbusVisitor("HoldingRegister", 1, 1))])
    assert len(plan) == 2


@given(st.integers(1, 200), st.integers(1, MAX_REGISTERS))
def test_a_device_that_takes_few_registers_gets_no_more(count: int, most: int) -> None:
    plan = plan_reads([(str(i), ModbusVisitor("InputRegister", i, limit=1)) for i in range(count)], most=most)
    assert [r.count for r in plan] == [most] * (count // most) + [count % most] * (count % most > 0)


def test_an_item_wider_than_the_device_takes_goes_alone() -> None:
    plan = plan_reads(
        [("a", ModbusVisitor("InputRegister", 0, limit=1)), ("b", ModbusVisitor("InputRegister", 1, limit=20)),
         ("c", ModbusVisitor("InputRegister", 21, limit=1))], most=10
    )  # fmt: skip
    assert [(r.start, r.count) for r in plan] == [(0, 1), (1, 20), (21, 1)]


def test_no_gap_at_all() -> None:
    at = [(str(o), ModbusVisitor("InputRegister", o, limit=1)) for o in (0, 1, 3)]
    assert [(r.start, r.count) for r in plan_reads(at, gap=0)] == [(0, 2), (3, 1)]


def test_a_dense_map_of_a_thousand_registers_takes_eight_requests() -> None:
    dense = [(f"p{i}", ModbusVisitor("HoldingRegister", i, limit=1)) for i in range(1000)]
    assert len(plan_reads(dense)) == 8
