"""Meters' logs in the wild: each is read as it is meant, or refused by a sentence that names the line or the column."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from refusals import raises

from fedspzo.device_runtime.energy.meter_log import Log, read_log


def read(tmp_path: Path, *lines: str, volts: float | None = None, encoding: str = "utf-8") -> Log:
    file = tmp_path / "log.csv"
    file.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return read_log(file, volts)


@pytest.mark.parametrize(
    "lines",
    [
        ["Time (s),Power Factor,Power (W)", "0,0.6,2.5", "1,0.6,5"],
        ["Time (s),Apparent Power (VA),Reactive Power (var),Active Power (W)", "0,9,9,2.5", "1,9,9,5"],
        ["time_s,S (VA),P (W),Q (var)", "0,9,2.5,9", "1,9,5,9"],
        ["Time (s),Power max (W),Power min (W),Power (W),Power avg (W)", "0,9,1,2.5,3", "1,9,1,5,3"],
        ["Time (s),Power (kW)", "0,0.0025", "1,0.005"],
        ["Timestamp(us),Voltage(mV),Current(uA)", "0,5000,500000", "1000000,5000,1000000"],
        ["Timestamp (ns);Power (µW)", "0;2500000", "1000000000;5000000"],
        ["time;voltage [V];current [nA]", "0;5;500000000", "1;5;1000000000"],
        ["Device: USB meter", "Serial: 12345", "", "Time (s),Power (W)", "0,2.5", "1,5"],
        ["sep=;", "Time (s);Power (W)", "0,0;2,5", "1,0;5,0"],
        ["Time,Voltage,Current", "s,V,mA", "0,5,500", "1,5,1000"],
        ["Time  Voltage(V)  Current(A)", "0    5.0   0.5", "1    5.0   1.0"],
        ["Time (s) , Power (W)", " 0 , 2.5 ", " 1 , 5 "],
        ["Time (s),Power (W)", "0,-2.5", "1,-5"],
        ["Elapsed,Power (W)", "00:00:00,2.5", "00:00:01,5"],
        ["Elapsed,Power (W)", "0:00:00.0,2.5 W", "0:00:01.0,5 W"],
        ["Time (s),Power (W)", "0,2", "0,3", "1,5"],
        ["t,Temp,P/W", "0,40,2.5", "1,40,5"],
        ["time,bus_voltage_V,shunt_voltage_mV,current_mA", "0,5,9,500", "1,5,9,1000"],
        ["Time (s),Milliwatts", "0,2500", "1,5000"],
        ["Time (s),VBUS (V),IBUS (A),D+ (V),D- (V),CC1 (V)", "0,5,.5,1,1,1", "1,5,1,1,1,1"],
        ["Time (min),Power (W)", "0,2.5", "0.0166666667,5"],
        ["Time (s),Power", "0,2500 mW", "1,5 W"],
        ["Time (s),Power_on,V,A", "0,1,5,.5", "1,1,5,1"],
        ["Time (s),Power,Power (mW)", "0,9,2500", "1,9,5000"],
        ["Time (s),activePower,busVoltage", "0,2.5,5", "1,5,5"],
    ],
)
def test_logs_that_are_read(lines: list[str], tmp_path: Path) -> None:
    log = read(tmp_path, *lines)
    assert log.watts == pytest.approx([2.5, 5.0])
    assert log.times == pytest.approx([0.0, 1.0])
    assert not log.absolute


@pytest.mark.parametrize(
    ("rows", "start"),
    [
        (["Date,Time,Power (W)", "2023-11-14,22:13:20,2.5", "2023-11-14,22:13:21,5"], (22, 13, 20)),
        (["Date;Time;Power (W)", "14.11.2023;22:13:20;2,5", "14.11.2023;22:13:21;5"], (22, 13, 20)),
        (["Date,Time,Power (W)", "11/14/2023,10:13:20 PM,2.5", "11/14/2023,10:13:21 PM,5"], (22, 13, 20)),
        (["Timestamp,Power (W)", "11/14/2023 22:13:20,2.5", "11/14/2023 22:13:21,5"], (22, 13, 20)),
        (["Timestamp,Power (W)", "14/11/23 22:13:20.0,2.5", "14/11/23 22:13:21.0,5"], (22, 13, 20)),
        (["Timestamp,Power (W)", "2023/11/14 22:13:20.123456789,2.5", "2023/11/14 22:13:21.123456789,5"], (22, 13, 20)),
    ],
)
def test_moments_of_the_day(rows: list[str], start: tuple[int, int, int], tmp_path: Path) -> None:
    log = read(tmp_path, *rows)
    assert log.absolute
    assert log.watts == pytest.approx([2.5, 5.0])
    assert log.times[0] == pytest.approx(datetime(2023, 11, 14, *start).astimezone().timestamp(), abs=0.2)
    assert log.times[1] - log.times[0] == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [1, 1e3, 1e6, 1e9])
def test_parts_of_seconds_since_the_epoch(factor: float, tmp_path: Path) -> None:
    rows = (f"{int(1_700_000_000 * factor)},2.5", f"{int(1_700_000_001 * factor)},5")
    log = read(tmp_path, "timestamp,Power (W)", *rows)
    assert log.absolute
    assert log.times == pytest.approx([1.7e9, 1.7e9 + 1])


@pytest.mark.parametrize(
    ("names", "hour"),
    [
        ("Time (UTC)", 22), ("Timestamp UTC", 22), ("Timestamp (GMT)", 22), ("Time [UTC+1]", 21),
        ("Time (UTC-03:30)", 25.5), ("Date (UTC),Time (UTC)", 22), ("Date,Time (GMT)", 22),
    ],
)  # fmt: skip
def test_a_zone_in_a_name_counts(names: str, hour: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    stamps = ["2023-11-14 22:00:00", "2023-11-14 22:00:01"]
    try:
        log = read(tmp_path, f"{names},W", *(f"{s.replace(' ', ',') if ',' in names else s},1" for s in stamps))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert log.times[0] == datetime(2023, 11, 14, tzinfo=timezone.utc).timestamp() + hour * 3600


def test_times_of_the_day_go_on_over_midnight(tmp_path: Path) -> None:
    log = read(tmp_path, "Time,Power (W)", "23:59:59,1", "00:00:00,1", "00:00:01,1")
    assert log.times - log.times[0] == pytest.approx([0, 1, 2])
    assert not log.absolute


def test_a_current_alone(tmp_path: Path) -> None:
    rows = ("Time (s),Current (mA)", "0,500", "1,1000")
    with raises("energy.log-header", "--volts"):
        read(tmp_path, *rows)
    log = read(tmp_path, *rows, volts=5.0)
    assert log.watts == pytest.approx([2.5, 5.0])
    assert any("5 V" in remark for remark in log.remarks)


def test_single_bad_rows_are_passed_over_and_named(tmp_path: Path) -> None:
    rows = [f"{second},{second % 3}" for second in range(20)]
    for bad in ("7,", "7,OL", "***", "7,nan", "x,2"):
        log = read(tmp_path, "Time (s),Power (W)", *rows[:7], bad, *rows[8:])
        assert len(log.times) == 19
        assert any("line 9" in remark for remark in log.remarks)
    with raises("energy.log-cell", "line 3", "15 of 20"):
        read(tmp_path, "Time (s),Power (W)", rows[0], *["7,OL"] * 15, *rows[16:])


@pytest.mark.parametrize(
    ("lines", "kind", "named"),
    [
        (["Time (s),Power Factor", "0,1", "1,1"], "energy.log-header", "'Power Factor'"),
        (["Time (s),Apparent Power (VA)", "0,1", "1,1"], "energy.log-header", "Apparent"),
        (["Time (s),Power (VA)", "0,1", "1,1"], "energy.log-header", "'VA'"),
        (["Time (s),Power (var)", "0,1", "1,1"], "energy.log-header", "'var'"),
        (["Time (s),Power (dBm)", "0,1", "1,1"], "energy.log-header", "'dBm'"),
        (["Time (s),Power (MW)", "0,1", "1,1"], "energy.log-header", "'MW'"),
        (["Time (s),Power avg (W)", "0,1", "1,1"], "energy.log-header", "avg"),
        (["Time (s),Max Power (W)", "0,1", "1,1"], "energy.log-header", "Max"),
        (["Time (s),CH1 Power (W),CH2 Power (W)", "0,1,1", "1,1,1"], "energy.log-header", "more than one power"),
        (["Time (s),Power (Wh)", "0,1", "1,1"], "energy.log-header", "'Wh'"),
        *[
            ([f"Time (s),{name}", "0,1", "1,1"], "energy.log-header", "a time and a power")
            for name in (
                "power_kwh",
                "Power%",
                "Power (%)",
                "powered",
                "Power_on",
                "Power state",
                "powerLevel",
                "PowerLevel",
                "power_state",
                "horsepower",
                "Power hp",
                "Total power today",
                "Power today",
                "Power_VA",
                "currently",
            )
        ],
        (["Time (s),V,A", "0,230,1", "1,231,1"], "energy.log-apparent", "apparent"),
        (["Time (s),Vrms (V),Irms (A)", "0,5,1", "1,5,1"], "energy.log-header", "names its columns"),
        (["Time (s),Power (W)", "0,5", "1,-5", "2,5"], "energy.log-sign", "line 3"),
        (
            ["Timestamp,Power (W)", "03/04/2026 10:00:00,1", "03/04/2026 10:00:01,1"],
            "energy.log-cell",
            "day or the month",
        ),
        (["Time (s),Power (W)", "0,1", "1,1", "0.5,1"], "energy.log-rows", "line 4"),
        (["Time (s),Power (W)", '0,"1,234"', '1,"1,234"', "2,1"], "energy.log-cell", "line 2"),
        (["Sample,Power (W)", "0,1", "1,1"], "energy.log-header", "a time and a power"),
        (["Time (ms),Power (W)", "1700000000,1", "1700000001,1"], "energy.log-cell", "unit"),
    ],
)
def test_logs_that_are_refused(lines: list[str], kind: str, named: str, tmp_path: Path) -> None:
    with raises(kind, "log.csv", named):
        read(tmp_path, *lines)


@pytest.mark.parametrize(
    "name",
    [
        "Power (W) [max]", "Power loss (W)", "PowermW", "Watt hours", "WattHours", "W·h", "W/h", "Power kvarh",
        "Power (mW avg)", "Cumulative power (W)", "Accumulated power (W)", "Rated power (W)", "Baseline power (W)",
        "Idle power (W)", "Power cap (W)", "Power budget", "Power mode", "Power source", "Power supply", "Power_pct",
        "Power ratio", "Power id", "Power count", "Power samples", "Power alarm", "Power quality", "power_uncertainty",
        "sigma power (W)", "Power (10 W)", "Power p95 (W)", "Power smoothed (W)", "Power filtered", "Power hold",
        "Power delta (W)", "Power diff (W)", "Power (W) raw", "Power ADC", "Power x10 (W)", "Harmonic power (W)",
        "power_5s", "MW", "Mw", "Power MW", "CPU power (W)", "mW (W)", "Power (mW dc)",
    ],
)  # fmt: skip
def test_a_column_that_may_be_another_quantity_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    with raises("energy.log-header", "log.csv", "a time and a power", f"'{name}'"):
        read(tmp_path, f"Time (s),{name}", "0,1", "1,1")


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("Active power (W)", 1.0), ("CH1 Power [mW]", 1e-3), ("Power (W) (CH1)", 1.0), ("Total Power (kW)", 1e3),
        ("mW", 1e-3), ("Input Power / W", 1.0), ("power.draw [W]", 1.0), ("Power in mW", 1e-3),
        ("Power consumption (W)", 1.0), ("power-mw", 1e-3), ("Current power (W)", 1.0), ("Main power", 1.0),
        ("PowerW", 1.0), ("milliwatts", 1e-3),
    ],
)  # fmt: skip
def test_a_power_says_where_it_is_measured(name: str, watts: float, tmp_path: Path) -> None:
    assert read(tmp_path, f"Time (s),{name}", "0,1", "1,1").watts == pytest.approx([watts] * 2)


@pytest.mark.parametrize("unit", ["0.1s", "10 ms", "cs", "ticks", "samples", "d", "CET", "days"])
def test_a_time_in_an_unknown_unit(unit: str, tmp_path: Path) -> None:
    with raises("energy.log-header", "log.csv", f"'Time ({unit})'", f"'{unit}'"):
        read(tmp_path, f"Time ({unit}),Power (W)", "0,1", "1,1")


@pytest.mark.parametrize(
    "lines",
    [
        ["Start time 12:00,Main power", "Time (s),Current (A),Voltage (V)", "0,.5,5", "1,1,5"],
        [
            "Start time:,12:00:00,Power range:,10 W",
            "Time (s),Power (W),Voltage (V),Current (A)",
            "0,2.5,9,9",
            "1,5,9,9",
        ],
        ["Date,2026-11-30,Power,W", "Time (s),P (W)", "", "# begin", "0,2.5", "1,5"],
        ["Time,Power", "Time (s),Power (mW)", "0,2500", "1,5000"],
    ],
)
def test_the_header_is_the_last_line_above_the_numbers(lines: list[str], tmp_path: Path) -> None:
    assert read(tmp_path, *lines).watts == pytest.approx([2.5, 5.0])


def test_what_only_looks_like_the_header(tmp_path: Path) -> None:
    rows = [f"{second},5,0.5" for second in range(60)]
    with raises("energy.log-header", "line 1 names columns", "2 cells and line 3 has 3"):
        read(tmp_path, "Start time 12:00,Main power", "Zeit,Spannung,Strom", *rows)
    with raises("energy.log-headers", "line 1 and line 22", "log.csv"):
        read(tmp_path, "Time (s),A,V", *rows[:20], "Time (s),V,A", *rows[20:])
    assert len(read(tmp_path, "Time (s),V,A", *rows[:20], "Time (s),V,A", *rows[20:]).times) == 60


@pytest.mark.parametrize(
    ("name", "stamps", "kind", "named"),
    [
        ("Time", ["12:30", "12:31"], "energy.log-cell", "'12:30' may be hours and minutes, or minutes and seconds"),
        (
            "Timestamp",
            ["20261130005300", "20261130005301"],
            "energy.log-cell",
            "'20261130005300' is no time since 1970",
        ),
        ("Timestamp", ["26/11/90 10:00:00", "26/11/90 10:00:01"], "energy.log-cell", "may begin with the year"),
        ("Timestamp", ["46356.0370", "46356.0371"], "energy.log-days", "line 2"),
        ("Timestamp", ["30 Nov 2026 00:53:00"] * 2, "energy.log-cell", "'30 Nov 2026 00:53:00' is no time in a form"),
        ("Timestamp", ["2026-11-30 25:00:00"] * 2, "energy.log-cell", "'2026-11-30 25:00:00' is no time in a form"),
        ("Timestamp", ["31.11.2026 00:53:00"] * 2, "energy.log-cell", "'31.11.2026 00:53:00' is no time in a form"),
    ],
)
def test_times_that_may_be_something_else(name: str, stamps: list[str], kind: str, named: str, tmp_path: Path) -> None:
    with raises(kind, "line 2 of", "log.csv", named):
        read(tmp_path, f"{name},Power (W)", *(f"{stamp},1" for stamp in stamps))


def test_what_cannot_be_read_is_said_in_plain_words(tmp_path: Path) -> None:
    for row, said in (("0", "it has too few cells"), ("0,OL", "'OL' is no number"), ("x,1", "'x' is no time")):
        with raises("energy.log-cell", "line 2 of", said):
            read(tmp_path, "Time (s),Power (W)", row, row)


@pytest.mark.parametrize("stray", [1e6, 0.0])
def test_a_single_stamp_out_of_order_is_named_by_its_own_line(stray: float, tmp_path: Path) -> None:
    rows = [f"{second},{second % 3}" for second in range(100, 120)]
    log = read(tmp_path, "Time (s),Power (W)", *rows[:7], f"{stray},2", *rows[8:])
    assert log.times.tolist() == [second for second in range(100, 120) if second != 107]
    assert any("line 9 of log.csv is out of the order" in remark for remark in log.remarks)
    with raises("energy.log-rows", "sorted by time"):
        read(tmp_path, "Time (s),Power (W)", *rows[:7], "1e6,2", "1e6,2", *rows[8:])


def test_the_largest_power_is_named_where_it_is_strange(tmp_path: Path) -> None:
    rows = [f"{second},{2 + second % 3}" for second in range(200)]
    assert not read(tmp_path, "Time (s),Power (W)", *rows).remarks
    log = read(tmp_path, "Time (s),Power (W)", *rows[:70], "70,5e8", *rows[71:])
    assert any("5e+08 W" in remark and "line 72" in remark for remark in log.remarks)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    log = read(tmp_path, "Time (s),Power (µW)", "0,2500000", "1,5000000", encoding=encoding)
    assert log.watts == pytest.approx([2.5, 5.0])


@pytest.mark.parametrize(
    ("volts", "kind"),
    [(-5.0, "option.volts"), (0.0, "option.volts"), (math.nan, "option.volts"), (math.inf, "option.volts"),
     (230.0, "option.volts-of-mains")],
)  # fmt: skip
def test_volts_of_no_supply(volts: float, kind: str, tmp_path: Path) -> None:
    with raises(kind, "--volts", "give"):
        read(tmp_path, "Time (s),Current (A)", "0,1", "1,1", volts=volts)


@pytest.mark.parametrize("kept", ["time", "header"])
def test_a_line_that_is_none_of_a_csv(kept: str, tmp_path: Path) -> None:
    rows = ["Time (s),Power (W)", "0,1", "1,1"]
    number = 2 if kept == "time" else 0
    rows[number] = f"{'9' * 140_000},1"
    with raises("energy.log-line", f"line {number + 1} ", "correct the line"):
        read(tmp_path, *rows)


def test_an_hour_of_a_day_on_which_clocks_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        log = read(tmp_path, "Time,Power (W)", "29.03.2026 12:00:00,1", "29.03.2026 12:00:01,1")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert log.times[0] == datetime(2026, 3, 29, 10, tzinfo=timezone.utc).timestamp()
