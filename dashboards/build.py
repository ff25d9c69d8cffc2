#!/usr/bin/env python3
"""Writes the three dashboards, and the list of their panels in README.md, from the descriptions below.

    dashboards/build.py            writes the files
    dashboards/build.py --check    says which of them are not as they would be written, and fails then

Python's own library is enough. In an expression `@name` stands for a metric of ours with the matchers of the variables,
and `@name{...}` for the same with more of them; where metrics.prefix is set to another prefix, change PREFIX.
"""

import json
import pathlib
import re
import sys

PREFIX = "pilotlight_"
SELECTED = 'job=~"$job",instance=~"$instance"'
HERE = pathlib.Path(__file__).parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"
WIDTH = 24
# What counts against the objective, and what it is counted among: a turn that its caller cancelled, or that was refused
# before it began, is neither good nor bad.
BAD, TRIED = 'outcome=~"error|timeout|session_lost"', 'outcome!~"cancelled|rejected"'


def expression(short):
    """The whole expression: `@turns_total{outcome="ok"}` becomes a metric of ours with the selected job and instance."""
    def whole(match):
        name, more = match.group(1), match.group(2)
        own = "" if name.startswith(("process_", "ALERTS", "up")) else PREFIX
        return f"{own}{name}{{{SELECTED}{',' + more if more else ''}}}"
    return re.sub(r"@(\w+)(?:\{([^}]*)\})?", whole, short)


def quantile(share, metric, by=""):
    """A quantile of a histogram over all that is selected."""
    return f"histogram_quantile({share}, sum by (le{by and ', ' + by}) (rate(@{metric}[$__rate_interval])))"


def rate(metric, by):
    return f"sum by ({by}) (rate(@{metric}[$__rate_interval]))"


def happened(metric, by=None):
    """How many in each interval of the graph: for things so rare that a rate says little."""
    return f"sum{f' by ({by})' if by else ''} (increase(@{metric}[$__rate_interval]))"


class Panel:
    """One panel: what it shows (expression, legend), in which unit, against which limits ((value, colour), ...)."""

    def __init__(self, title, meaning, *queries, kind="timeseries", unit="short", limits=(), w=8, h=7, **more):
        self.title, self.meaning, self.queries, self.kind = title, meaning, queries, kind
        self.unit, self.limits, self.w, self.h, self.more = unit, limits, w, h, more

    def json(self, number, x, y):
        instant = self.kind in ("stat", "table")
        targets = [
            {
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": expression(short),
                "format": "heatmap" if self.kind == "heatmap" else "table" if self.kind == "table" else "time_series",
                "instant": instant,
                "legendFormat": legend,
                "range": not instant,
                "refId": chr(ord("A") + place),
            }
            for place, (short, legend) in enumerate(self.queries)
        ]
        steps = [{"color": self.more.get("base", GREEN), "value": None}]
        steps += [{"color": colour, "value": value} for value, colour in self.limits]
        defaults = {
            "unit": self.unit,
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": self.custom(),
            "mappings": self.more.get("mappings", []),
        }
        if "min" in self.more or self.kind == "timeseries":
            defaults["min"] = self.more.get("min", 0)
        if "max" in self.more:
            defaults["max"] = self.more["max"]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.meaning,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.w, "h": self.h},
            "targets": targets,
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": self.options(),
        }

    def custom(self):
        if self.kind == "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 25 if self.more.get("stack") else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.more.get("stack") else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if self.limits else "off"},
            }
        if self.kind == "state-timeline":
            return {"fillOpacity": 70, "lineWidth": 0}
        return {}

    def options(self):
        if self.kind == "timeseries":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        if self.kind == "stat":
            return {
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "textMode": self.more.get("text", "auto"),
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        if self.kind == "heatmap":
            return {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange",
                          "reverse": False},
                "yAxis": {"unit": self.unit},
                "cellGap": 1,
                "legend": {"show": True},
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            }
        if self.kind == "table":
            return {"showHeader": True, "frameIndex": 0}
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"showValue": "auto", "rowHeight": 0.8, "mergeValues": True, "legend": legend,
                "tooltip": {"mode": "single", "sort": "none"}}


def value_names(names):
    """Words for the values of a gauge: {value: (word, colour)}."""
    options = {str(value): {"text": word, "color": colour, "index": value} for value, (word, colour) in names.items()}
    return [{"type": "value", "options": options}]


ADMISSION = value_names({
    0: ("open", GREEN), 1: ("evicting idle", YELLOW), 2: ("no new children", ORANGE), 3: ("no cold turns", RED),
})
UP = value_names({0: ("down", RED), 1: ("up", GREEN)})

OVERVIEW = ("overview", "pilotlight: overview", "Rate, errors and duration of turns, starts of children, what broke.", [
    ("Status", [
        Panel("Good turns, 30 days",
              "Share of turns in the last 30 days that did not end by an error, a time limit or the loss of the session. "
              "The objective is 99.5 %.",
              (f"1 - (sum(increase(@turns_total{{{BAD}}}[30d])) / (sum(increase(@turns_total{{{TRIED}}}[30d])) > 0)) "
               "or vector(1)", "good"),
              kind="stat", unit="percentunit", base=RED, limits=((0.99, ORANGE), (0.995, GREEN)), w=4, h=4),
        Panel("Firing alerts", "Alerts of these rules that fire now. What to do is said in README.md.",
              ('count(ALERTS{alertstate="firing",alertname=~"Pilotlight.*",job=~"$job"}) or vector(0)', "firing"),
              kind="stat", limits=((1, RED),), w=4, h=4),
        Panel("Admission",
              "Whether memory lets new work in: open; evicting idle sessions (80 % of the budget); no new children (90 %); "
              "no turns for sessions without a child (95 %). The worst of the selected instances.",
              ("max(@admission_state)", "admission"), kind="stat", mappings=ADMISSION,
              limits=((1, YELLOW), (2, RED)), w=4, h=4),
        Panel("Instances up", "Instances that Prometheus can reach.",
              ("count(@up == 1) or vector(0)", "up"), kind="stat", base=RED, limits=((1, GREEN),), w=4, h=4),
        Panel("Containment",
              "The strongest means by which the tree of a child can be ended: cgroup (certain), walk (certain unless a "
              "process runs away on purpose).",
              ("count by (rung) (@containment_info == 1)", "{{rung}}"), kind="stat", text="name", w=4, h=4),
        Panel("Version", "The builds that run: their version and commit.", ("count by (version, commit) (@build_info)", "{{version}} {{commit}}"),
              kind="stat", text="name", base=BLUE, w=4, h=4),
    ]),
    ("Turns", [
        Panel("Turns by outcome", "Turns that ended, per second. rejected: refused before a child saw them.",
              (rate("turns_total", "outcome"), "{{outcome}}"), unit="reqps", stack=True),
        Panel("Error ratio",
              "Share of turns that ended by an error, a time limit or the loss of the session. The line is what the "
              "objective allows.",
              (f"(sum(rate(@turns_total{{{BAD}}}[$__rate_interval])) / "
               f"(sum(rate(@turns_total{{{TRIED}}}[$__rate_interval])) > 0)) or vector(0)", "errors"),
              unit="percentunit", limits=((0.005, RED),)),
        Panel("Turn duration", "From accepting a turn to its end, all outcomes.",
              *((quantile(share, "turn_duration_seconds_bucket"), word)
                for share, word in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))), unit="s"),
        Panel("First output, p95",
              "From accepting a turn to its first sign of work. cold: a child had to be started first.",
              (quantile(0.95, "first_output_seconds_bucket", "start"), "{{start}}"), unit="s"),
        Panel("Tokens", "Tokens per second as the model's API counted them, by kind.",
              (rate("tokens_total", "kind"), "{{kind}}"), unit="short", stack=True),
        Panel("Cost per hour", "US dollars per hour as the CLI reckons them, by family of models.",
              ("sum by (model) (rate(@cost_micro_usd_total[$__rate_interval])) * 3600 / 1e6", "{{model}}"),
              unit="currencyUSD", stack=True),
    ]),
    ("HTTP", [
        Panel("Answers by class", "Requests answered per second: served, refused (the caller's doing), failed (ours).",
              (rate("http_requests_total", "status"), "{{status}}"), unit="reqps", stack=True),
        Panel("Requests by kind", "What was asked for, per second.",
              (rate("http_requests_total", "route"), "{{route}}"), unit="reqps", stack=True),
        Panel("Turns by dialect", "Requests for a turn per second, by the dialect of their body.",
              (rate("http_turns_total", "dialect"), "{{dialect}}"), unit="reqps", stack=True),
        Panel("Time to the answer's head, p95",
              "From a request's head to its answer's. For turns this includes the wait for the first event.",
              (quantile(0.95, "http_response_seconds_bucket", "kind"), "{{kind}}"), unit="s"),
        Panel("Callers not let in", "Requests refused because of who called, in each interval.",
              (happened("auth_failures_total", "reason"), "{{reason}}"), stack=True),
        Panel("Callers over their share", "Requests refused because of a limit of the HTTP server, in each interval.",
              (happened("http_limited_total", "limit"), "{{limit}}"), stack=True),
    ]),
    ("Starts of children", [
        Panel("Starts by result", "Children started per second. none: it became ready; else why it did not.",
              (rate("spawns_total", "reason"), "{{reason}}"), unit="ops", stack=True),
        Panel("Time until ready", "Starts in each interval by how long it took until the child took turns.",
              ('sum by (le) (increase(@spawn_duration_seconds_bucket{phase="ready"}[$__rate_interval]))', "{{le}}"),
              kind="heatmap", unit="s"),
        Panel("Start duration, p99", "exec: until the system had started the process. ready: until it took turns. The "
              "line is where an alert begins.",
              (quantile(0.99, "spawn_duration_seconds_bucket", "phase"), "{{phase}}"), unit="s", limits=((5, RED),)),
        Panel("Starts in flight", "Children being started now, and how many may be at once.",
              ("sum(@starts_in_flight)", "in flight"), ("sum(@starts_limit)", "limit")),
        Panel("Starts that wait", "Length of the queue for a start, and how long the slowest 1 % waited.",
              ("sum(@admission_queue_length)", "waiting"), (quantile(0.99, "queue_wait_seconds_bucket"), "wait p99 (s)")),
        Panel("Refused for want of room", "Turns refused in each interval, by what was full.",
              (happened("admission_rejected_total", "reason"), "{{reason}}"), stack=True),
    ]),
    ("Reliability", [
        Panel("Exits by reason", "Children that are gone, in each interval. evicted, drain: we asked. All others: they did "
              "not leave because we wanted.", (happened("exits_total", "reason"), "{{reason}}"), stack=True),
        Panel("Restarts by cause", "Children started again because the one before was lost, in each interval.",
              (happened("restarts_total", "cause"), "{{cause}}"), stack=True),
        Panel("Crash loops", "Sessions that failed so often that they pause, in each interval.",
              (happened("crash_loops_total"), "crash loops"), limits=((3, RED),)),
        Panel("Recovery, p99", "From the crash of a child to the next one being ready. The line is where an alert begins.",
              (quantile(0.99, "recovery_duration_seconds_bucket"), "p99"), unit="s", limits=((5, RED),)),
        Panel("Hangs", "Children found hanging in each interval, by what gave them away.",
              (happened("hangs_total", "detector"), "{{detector}}"), stack=True),
        Panel("Contexts lost", "Conversations that came back without their last turns or without anything, in each "
              "interval. Their users were told.", (happened("contexts_lost_total", "kind"), "{{kind}}"), stack=True),
        Panel("Broken records", "Records of sessions that could not be understood and were moved aside, in each interval. "
              "Each cost its conversation.", (happened("records_broken_total"), "broken records"), limits=((1, RED),)),
    ]),
])

CAPACITY = ("capacity", "pilotlight: capacity", "Use, saturation and errors of what children are made of.", [
    ("Memory", [
        Panel("Memory of children by kind",
              "Whole trees. anon, shmem and swap count against the budget; shared_file is shared by all children and does "
              "not. The lines: idle children are evicted, no new children, no turns without a child.",
              ("sum by (kind) (@memory_bytes)", "{{kind}}"), ("0.80 * sum(@memory_budget_bytes)", "80 % of the budget"),
              ("sum(@session_memory_limit_bytes)", "one session may"),
              ("0.90 * sum(@memory_budget_bytes)", "90 %"), ("0.95 * sum(@memory_budget_bytes)", "95 %"),
              unit="bytes", w=12),
        Panel("Budget used", "Memory that counts against the budget, by instance.",
              ('sum by (instance) (@memory_bytes{kind!="shared_file"}) / on (instance) '
               "(sum by (instance) (@memory_budget_bytes) > 0)", "{{instance}}"),
              unit="percentunit", limits=((0.8, YELLOW), (0.9, ORANGE), (0.95, RED)), w=6),
        Panel("Memory left on the host", "What the host, or our container, can still give.",
              ("min by (instance) (@memory_available_bytes)", "{{instance}}"), unit="bytes", w=6),
        Panel("Memory of one child", "How many children had how much memory, at every measurement.",
              ("sum by (le) (increase(@session_memory_bytes_bucket[$__rate_interval]))", "{{le}}"), kind="heatmap",
              unit="bytes", w=12),
        Panel("Evictions by reason", "Children stopped while their session stays, in each interval.",
              (happened("evictions_total", "reason"), "{{reason}}"), stack=True, w=6),
        Panel("Memory is an estimate",
              "1: the kernel does not tell the parts of memory (gVisor); all resident memory is counted, which is more.",
              ("max by (instance) (@memory_is_approximate)", "{{instance}}"), max=1, w=6),
    ]),
    ("Sessions and processes", [
        Panel("Sessions by state", "Sessions in memory, and how many may be.",
              ("sum by (state) (@sessions)", "{{state}}"), ("sum(@sessions_limit)", "limit")),
        Panel("Children", "Children alive, and how many may be.",
              ('sum(@processes{kind="cli"})', "alive"), ("sum(@children_limit)", "limit")),
        Panel("Processes by kind", "cli: children. shim: their parents, ours. descendant: tools, MCP servers and what they "
              "started.", ("sum by (kind) (@processes)", "{{kind}}"), stack=True),
        Panel("Oldest idle and oldest turn",
              "How long the child idle longest has been so (it is stopped at session.idle_timeout), and how long the "
              "longest turn has been running (it ends at session.turn_timeout).",
              ("max(@oldest_idle_seconds)", "idle"), ("max(@oldest_turn_seconds)", "turn"), unit="s"),
        Panel("Zombies", "Ended processes that nobody has reaped, of all that the server sees. Few and short-lived is normal.",
              ("sum(@zombies)", "zombies"), limits=((20, RED),)),
        Panel("Life of children", "Children that ended in each interval, by how long they had lived.",
              ("sum by (le) (increase(@session_lifetime_seconds_bucket[$__rate_interval]))", "{{le}}"), kind="heatmap",
              unit="s"),
    ]),
    ("Host and process", [
        Panel("Data directory writable", "1 while files can be written to the data directory. At 0 no session can begin.",
              ("min by (instance) (@data_dir_writable)", "{{instance}}"), unit="none"),
        Panel("CLI", "1 while the CLI is of a version that was not judged, and while the configured one does not start and the "
              "version that worked last is used.",
              ("max by (instance) (@cli_version_unjudged)", "{{instance}} not judged"),
              ("max by (instance) (@cli_fallback)", "{{instance}} falls back"), unit="none", limits=((1, RED),)),
        Panel("Open files", "Share of the open files that the server may have. When it is full, starts are refused and connections wait.",
              ("max by (instance) (@open_fds / @open_fds_limit)", "{{instance}}"), unit="percentunit",
              limits=((0.8, RED),), max=1),
        Panel("Pressure",
              "Share of the last ten seconds in which something on the host waited for the resource (PSI). Where the kernel "
              "does not tell it, known is 0 and the rest says nothing.",
              ("max by (resource) (@pressure_ratio)", "{{resource}}"), ("min(@pressure_is_known)", "known"),
              unit="percentunit", max=1),
        Panel("Processor of the server", "Cores used by the server itself, without children.",
              ("sum by (instance) (rate(@process_cpu_seconds_total[$__rate_interval]))", "{{instance}}"), unit="short"),
        Panel("Memory of the server", "Resident memory of the server itself, without children.",
              ("sum by (instance) (@process_resident_memory_bytes)", "{{instance}}"), unit="bytes"),
        Panel("Lag of the runtime, p99",
              "How much later than due timers ran. Above 0.1 s the host has too few cores for what it runs.",
              (quantile(0.99, "runtime_lag_seconds_bucket"), "p99"), unit="s", limits=((0.1, ORANGE),)),
        Panel("Bytes of children", "Bytes per second written to and read from children.",
              (rate("stream_bytes_total", "stream"), "{{stream}}"), unit="Bps", stack=True),
    ]),
    ("Measuring itself", [
        Panel("Age of the last measurement", "How old the figures of memory and processes are.",
              ("max by (instance) (time() - @last_sample_timestamp_seconds)", "{{instance}}"), unit="s",
              limits=((60, RED),)),
        Panel("Work of a measurement, p99", "Time that one round of measuring took, its pauses left out.",
              (quantile(0.99, "sample_duration_seconds_bucket"), "p99"), unit="s"),
        Panel("Failed measurements", "What could not be measured, in each interval.",
              (happened("sample_errors_total", "source"), "{{source}}"), stack=True),
        Panel("Writing /metrics, p99", "Time that the server took to write its figures down for Prometheus.",
              (quantile(0.99, "metrics_render_seconds_bucket"), "p99"), unit="s", limits=((0.05, ORANGE),)),
    ]),
])

INCIDENT = ("incident", "pilotlight: incident", "One incident, on one time axis: what happened first.", [
    ("When", [
        Panel("Reachable", "Whether Prometheus could reach each instance.", ("max by (instance) (@up)", "{{instance}}"),
              kind="state-timeline", mappings=UP, w=12, h=5),
        Panel("Admission", "Whether memory let new work in, by instance.",
              ("max by (instance) (@admission_state)", "{{instance}}"), kind="state-timeline", mappings=ADMISSION, w=12, h=5),
        Panel("Alerts", "What fires or is about to, now.",
              ('ALERTS{alertname=~"Pilotlight.*",job=~"$job"}', ""), kind="table", w=12, h=6),
        Panel("Running since", "When each server began.",
              ("max by (instance) (@process_start_time_seconds) * 1000", "{{instance}}"), kind="stat",
              unit="dateTimeAsLocal", base=BLUE, w=12, h=6),
    ]),
    ("What children did", [
        Panel("Exits nobody asked for", "In each interval, by reason.",
              (happened('exits_total{reason!~"evicted|drain"}', "reason"), "{{reason}}"), stack=True),
        Panel("Sessions not well", "Sessions that wait for the next try or have given up for now.",
              ('sum by (state) (@sessions{state=~"backoff|failed|stopping"})', "{{state}}"), stack=True),
        Panel("Failed starts", "In each interval, by reason.",
              (happened('spawns_total{outcome="failed"}', "reason"), "{{reason}}"), stack=True),
        Panel("Broken protocol", "Output of children that was not as agreed, in each interval.",
              (happened("protocol_errors_total", "kind"), "{{kind}}"), stack=True),
        Panel("Answer to a ping, p99", "Time that silent children took to answer whether they live. No line: none was "
              "asked.", (quantile(0.99, "ping_seconds_bucket"), "p99"), unit="s"),
        Panel("Output cut", "Times that something of a stream was not kept because of a limit, in each interval.",
              (happened("truncations_total", "stream"), "{{stream}}"), stack=True),
    ]),
    ("What was done about it", [
        Panel("Steps of stopping", "In each interval: interrupt, end of input, SIGTERM, the end of the whole tree.",
              (happened("stop_steps_total", "step"), "{{step}}"), stack=True),
        Panel("Time to stop, p99", "From asking a child to leave to its end. killed: it did not leave by itself.",
              (quantile(0.99, "stop_duration_seconds_bucket", "how"), "{{how}}"), unit="s"),
        Panel("Time to end a tree, p99", "From the end of a child to nothing of its tree being left, by the means used.",
              (quantile(0.99, "tree_kill_seconds_bucket", "rung"), "{{rung}}"), unit="s", limits=((1, RED),)),
        Panel("Leftovers killed", "Processes that children left behind, in each interval. marker: they had escaped the "
              "better means.", (happened("leftovers_killed_total", "rung"), "{{rung}}"), stack=True),
        Panel("Swept at a start", "Processes of a former run of the server, found and killed by this one.",
              ("sum by (instance) (@swept_at_start_total)", "{{instance}}")),
        Panel("Panics of actors", "In each interval. Each is a defect of pilotlight: report it with the log.",
              (happened("actor_panics_total", "actor"), "{{actor}}"), limits=((1, RED),), stack=True),
    ]),
])

DASHBOARDS = (OVERVIEW, CAPACITY, INCIDENT)

# Marks on the time axis of every dashboard.
ANNOTATIONS = (
    ("Crash loops", RED, "sum by (instance) (increase(@crash_loops_total[1m])) > 0", "a session crashes again and again"),
    ("Restarts of the server", ORANGE, "changes(@process_start_time_seconds[2m]) > 0", "the server was started"),
    ("Versions", BLUE, "count by (version) (@build_info) unless count by (version) (@build_info offset 2m)",
     "version {{version}}"),
)


def annotation(name, colour, short, text):
    return {
        "name": name, "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": colour, "titleFormat": text,
        "target": {"expr": expression(short), "interval": "60s", "refId": name},
    }


def variable(name, label, query):
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE,
        "query": {"query": query, "refId": name}, "refresh": 2, "includeAll": True, "allValue": ".*", "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "sort": 1, "hide": 0, "options": [],
        "regex": "", "skipUrlSync": False,
    }


def dashboard(name, title, meaning, rows):
    panels, y = [], 0
    for heading, members in rows:
        panels.append({"id": len(panels) + 1, "type": "row", "title": heading, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y, tallest = 0, y + 1, 0
        for panel in members:
            if x + panel.w > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.json(len(panels) + 1, x, y))
            x, tallest = x + panel.w, max(tallest, panel.h)
        y += tallest
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
              "refresh": 1, "includeAll": False, "multi": False, "options": [], "regex": "", "skipUrlSync": False}
    return {
        "uid": f"pilotlight-{name}", "title": title, "description": meaning, "tags": ["pilotlight"], "schemaVersion": 39,
        "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "browser", "version": 1,
        "time": {"from": "now-1h" if name == "incident" else "now-6h", "to": "now"},
        "annotations": {"list": [annotation(*one) for one in ANNOTATIONS]},
        "templating": {"list": [
            source,
            variable("job", "Job", f"label_values({PREFIX}build_info, job)"),
            variable("instance", "Instance", f'label_values({PREFIX}build_info{{job=~"$job"}}, instance)'),
        ]},
        "links": [{"title": "pilotlight", "type": "dashboards", "tags": ["pilotlight"], "asDropdown": True,
                   "includeVars": True, "keepTime": True, "icon": "external link", "targetBlank": False, "tooltip": "",
                   "url": ""}],
        "panels": panels,
    }


BEGIN, END = "<!-- panels: written by build.py -->\n", "<!-- end of panels -->"


def readme():
    """README.md with the list of panels as it should be."""
    lines = []
    for name, title, meaning, rows in DASHBOARDS:
        lines += [f"### {title.split(': ')[1].capitalize()} (`{name}.json`)", "", meaning, ""]
        for heading, members in rows:
            lines += [f"**{heading}**", "", "| Panel | What it means |", "|---|---|"]
            lines += [f"| {panel.title} | {panel.meaning} |" for panel in members]
            lines += [""]
    text = (HERE / "README.md").read_text()
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + "\n".join(lines) + END + rest.split(END)[1]


def main():
    files = {f"{one[0]}.json": json.dumps(dashboard(*one), indent=2) + "\n" for one in DASHBOARDS}
    files["README.md"] = readme()
    stale = [name for name, text in files.items()
             if not (HERE / name).exists() or (HERE / name).read_text() != text]
    if sys.argv[1:] == ["--check"]:
        for name in stale:
            print(f"dashboards/{name} is not what build.py writes: run dashboards/build.py", file=sys.stderr)
        return bool(stale)
    for name in stale:
        (HERE / name).write_text(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
