#!/usr/bin/env python3
"""Generates the three dashboards, and the list of their panels in README.md, from the descriptions below.

    dashboards/build.py            writes the files
    dashboards/build.py --check    names outdated files and fails if there are any

It needs the standard library only. In an expression `@name` is a pilotlight metric with the matchers of the variables, and
`@name{...}` adds matchers. PREFIX must equal the configuration key metrics.prefix.
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
# Turns that count against the objective, and all turns that count. Cancelled and rejected turns do not count.
BAD, TRIED = 'outcome=~"error|timeout|session_lost"', 'outcome!~"cancelled|rejected"'


def expression(short):
    """Expands `@turns_total{outcome="ok"}` to the full metric name with the selected job and instance."""
    def whole(match):
        name, more = match.group(1), match.group(2)
        own = "" if name == "up" or name.startswith(("process_", "ALERTS")) else PREFIX
        return f"{own}{name}{{{SELECTED}{',' + more if more else ''}}}"
    return re.sub(r"@(\w+)(?:\{([^}]*)\})?", whole, short)


def quantile(share, metric, by=""):
    """A quantile of a histogram over the selection."""
    return f"histogram_quantile({share}, sum by (le{by and ', ' + by}) (rate(@{metric}[$__rate_interval])))"


def rate(metric, by):
    return f"sum by ({by}) (rate(@{metric}[$__rate_interval]))"


def increase(metric, by=None):
    """Events per interval of the graph, for events too rare for a rate."""
    return f"sum{f' by ({by})' if by else ''} (increase(@{metric}[$__rate_interval]))"


class Panel:
    """One panel: its queries (expression, legend), unit and thresholds ((value, colour), ...)."""

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
    """Value mappings of a gauge: {value: (text, colour)}."""
    options = {str(value): {"text": word, "color": colour, "index": value} for value, (word, colour) in names.items()}
    return [{"type": "value", "options": options}]


ADMISSION = value_names({
    0: ("open", GREEN), 1: ("evicting idle", YELLOW), 2: ("no new children", ORANGE), 3: ("no cold turns", RED),
})
UP = value_names({0: ("down", RED), 1: ("up", GREEN)})

OVERVIEW = ("overview", "pilotlight: overview", "Rate, errors and duration of turns; starts and failures of children.", [
    ("Status", [
        Panel("Good turns, 30 days",
              "Share of turns in the last 30 days that did not end with an error, a timeout or a lost session. "
              "The objective is 99.5 %.",
              (f"1 - (sum(increase(@turns_total{{{BAD}}}[30d])) / (sum(increase(@turns_total{{{TRIED}}}[30d])) > 0)) "
               "or vector(1)", "good"),
              kind="stat", unit="percentunit", base=RED, limits=((0.99, ORANGE), (0.995, GREEN)), w=4, h=4),
        Panel("Firing alerts", "Alerts of these rules that fire now. README.md has their runbooks.",
              ('count(ALERTS{alertstate="firing",alertname=~"Pilotlight.*",job=~"$job"}) or vector(0)', "firing"),
              kind="stat", limits=((1, RED),), w=4, h=4),
        Panel("Admission",
              "Admission by memory: open; evicting idle sessions (80 % of the budget); no new children (90 %); "
              "no turns for sessions without a child (95 %). Maximum of the selected instances.",
              ("max(@admission_state)", "admission"), kind="stat", mappings=ADMISSION,
              limits=((1, YELLOW), (2, RED)), w=4, h=4),
        Panel("Instances up", "Instances that Prometheus can scrape.",
              ("count(@up == 1) or vector(0)", "up"), kind="stat", base=RED, limits=((1, GREEN),), w=4, h=4),
        Panel("Containment",
              "Method that kills the process tree of a child: namespace or cgroup (always complete), walk (complete unless "
              "a process evades it deliberately).",
              ("count by (rung) (@containment_info == 1)", "{{rung}}"), kind="stat", text="name", w=4, h=4),
        Panel("Version", "Version and commit of the running builds.", ("count by (version, commit) (@build_info)", "{{version}} {{commit}}"),
              kind="stat", text="name", base=BLUE, w=4, h=4),
    ]),
    ("Turns", [
        Panel("Turns by outcome", "Ended turns per second. rejected: refused before a child received them.",
              (rate("turns_total", "outcome"), "{{outcome}}"), unit="reqps", stack=True),
        Panel("Error ratio",
              "Share of turns that ended with an error, a timeout or a lost session. The line is the error budget of "
              "the objective.",
              (f"(sum(rate(@turns_total{{{BAD}}}[$__rate_interval])) / "
               f"(sum(rate(@turns_total{{{TRIED}}}[$__rate_interval])) > 0)) or vector(0)", "errors"),
              unit="percentunit", limits=((0.005, RED),)),
        Panel("Turn duration", "Time from the acceptance of a turn to its end, for all outcomes.",
              *((quantile(share, "turn_duration_seconds_bucket"), word)
                for share, word in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))), unit="s"),
        Panel("First output, p95",
              "Time from the acceptance of a turn to its first output. cold: a child was started first.",
              (quantile(0.95, "first_output_seconds_bucket", "start"), "{{start}}"), unit="s"),
        Panel("Tokens", "Tokens per second as counted by the model's API, by kind.",
              (rate("tokens_total", "kind"), "{{kind}}"), unit="short", stack=True),
        Panel("Cost per hour", "US dollars per hour as calculated by the CLI, by model family.",
              ("sum by (model) (rate(@cost_micro_usd_total[$__rate_interval])) * 3600 / 1e6", "{{model}}"),
              unit="currencyUSD", stack=True),
    ]),
    ("HTTP", [
        Panel("Responses by class", "Responses per second: served, refused (client error), failed (server error).",
              (rate("http_requests_total", "status"), "{{status}}"), unit="reqps", stack=True),
        Panel("Requests by route", "Requests per second, by route.",
              (rate("http_requests_total", "route"), "{{route}}"), unit="reqps", stack=True),
        Panel("Turns by dialect", "Requests for a turn per second, by dialect.",
              (rate("http_turns_total", "dialect"), "{{dialect}}"), unit="reqps", stack=True),
        Panel("Time to response headers, p95",
              "Time from request headers to response headers. For turns it includes the wait for the first event.",
              (quantile(0.95, "http_response_seconds_bucket", "kind"), "{{kind}}"), unit="s"),
        Panel("Authentication failures", "Requests refused by authentication or authorisation, per interval.",
              (increase("auth_failures_total", "reason"), "{{reason}}"), stack=True),
        Panel("Limited requests", "Requests refused by a limit of the HTTP server, per interval.",
              (increase("http_limited_total", "limit"), "{{limit}}"), stack=True),
        Panel("Webhooks", "Attempts to deliver webhooks per interval, by outcome; webhooks that were dropped; those that wait.",
              (increase("webhook_attempts_total", "outcome"), "{{outcome}}"),
              (increase("webhook_drops_total", "reason"), "dropped: {{reason}}"), ("sum(@webhooks_waiting)", "waiting")),
        Panel("Audit log", "Lines of the audit log per interval, written and lost.",
              ("sum(increase(@audit_lines_total[$__rate_interval]))", "written"),
              (increase("audit_lost_total", "reason"), "lost: {{reason}}")),
        Panel("Configuration", "Reloads of the configuration per interval, by outcome; changed keys that wait for a start.",
              (increase("config_reloads_total", "outcome"), "{{outcome}}"), ("sum(@config_restart_keys)", "keys that wait")),
        Panel("Attached clients", "Clients of pilotlight attach, with their child or on the way to one.",
              ("sum(@attached_clients)", "attached")),
        Panel("Refused attached clients", "Clients of pilotlight attach that were refused, per interval. peer: of another "
              "user, or below the server. caller: key, user or session. flags: against a policy. session: no child.",
              (increase("attach_refused_total", "reason"), "{{reason}}"), stack=True),
    ]),
    ("Starts of children", [
        Panel("Starts by result", "Starts of children per second. none: the child became ready; otherwise the reason of the failure.",
              (rate("spawns_total", "reason"), "{{reason}}"), unit="ops", stack=True),
        Panel("Time until ready", "Starts per interval, by the time until the child accepted turns.",
              ('sum by (le) (increase(@spawn_duration_seconds_bucket{phase="ready"}[$__rate_interval]))', "{{le}}"),
              kind="heatmap", unit="s"),
        Panel("Start duration, p99", "exec: until the process was started. ready: until the child accepted turns. The "
              "line is the threshold of an alert.",
              (quantile(0.99, "spawn_duration_seconds_bucket", "phase"), "{{phase}}"), unit="s", limits=((5, RED),)),
        Panel("Starts in flight", "Concurrent starts of children, and their limit.",
              ("sum(@starts_in_flight)", "in flight"), ("sum(@starts_limit)", "limit")),
        Panel("Waiting starts", "Length of the start queue, and waiting time of the slowest 1 %.",
              ("sum(@admission_queue_length)", "waiting"), (quantile(0.99, "queue_wait_seconds_bucket"), "wait p99 (s)")),
        Panel("Refused for lack of capacity", "Turns refused per interval, by the exhausted resource.",
              (increase("admission_rejected_total", "reason"), "{{reason}}"), stack=True),
    ]),
    ("Reliability", [
        Panel("Exits by reason", "Exits of children per interval. evicted, drain: requested by the server. All others are "
              "unexpected.", (increase("exits_total", "reason"), "{{reason}}"), stack=True),
        Panel("Restarts by cause", "Restarts after the loss of a child, per interval.",
              (increase("restarts_total", "cause"), "{{cause}}"), stack=True),
        Panel("Crash loops", "Sessions whose circuit opened after repeated failures, per interval.",
              (increase("crash_loops_total"), "crash loops"), limits=((3, RED),)),
        Panel("Recovery, p99", "Time from the crash of a child until the next one is ready. The line is the threshold of an alert.",
              (quantile(0.99, "recovery_duration_seconds_bucket"), "p99"), unit="s", limits=((5, RED),)),
        Panel("Hangs", "Hung children detected per interval, by detector.",
              (increase("hangs_total", "detector"), "{{detector}}"), stack=True),
        Panel("Contexts lost", "Conversations that lost their last turns or all of their context, per interval. "
              "Their clients received a notice.", (increase("contexts_lost_total", "kind"), "{{kind}}"), stack=True),
        Panel("Conversations restored", "Transcripts that were damaged or missing and were restored without a loss, per interval.",
              (increase("conversations_recovered_total", "source"), "{{source}}"), stack=True),
        Panel("Journal errors", "Turns that a journal did not keep at once, per interval: write and sync point to the disk, "
              "full to session.journal_bytes, memory to a disk that stays full, broken to damaged files.", (increase("journal_errors_total", "reason"), "{{reason}}"), stack=True),
        Panel("Mirrored lines", "Lines in which the CLI repeated its transcript, per interval. None while turns run: the "
              "version has no mirror, or its disk is full.", (increase("mirrored_lines_total"), "lines")),
        Panel("Notices of the CLI", "What the CLI says about itself, per interval, by kind. session_writes_lost: the disk of its "
              "transcript was full.", (increase("cli_notices_total", "kind"), "{{kind}}"), stack=True),
        Panel("Broken records", "Session records that could not be parsed and were renamed, per interval. Each lost its "
              "settings; without a journal also its conversation.", (increase("records_broken_total"), "broken records"), limits=((1, RED),)),
    ]),
    # Without a cluster everything is 0; a quantile of nothing would be no number.
    ("Cluster", [
        Panel("Nodes", "Nodes of the cluster that each instance sees; 0 without a cluster. Lines that differ for long: an "
              "instance is cut off from etcd.", ("min by (instance) (@cluster_nodes)", "{{instance}}"), unit="none"),
        Panel("Users by node", "Users whom each node has.", ("sum by (instance) (@cluster_users)", "{{instance}}"), stack=True),
        Panel("Claims of users", "Claims per interval. won: the node has the user, with its files. owned: another node was "
              "faster. failed: etcd or the store did not answer, or the node is draining or full.",
              (increase("cluster_claims_total", "result"), "{{result}}"), stack=True),
        Panel("Time of a claim", "Time to claim a user and to fetch its files.",
              *((f'{quantile(share, "cluster_claim_seconds_bucket")} >= 0 or vector(0)', word)
                for share, word in ((0.5, "p50"), (0.95, "p95"))), unit="s"),
        Panel("Commits", "Changes of users on their way to the store, per interval. fenced: the user is lost to another node. "
              "failed: given up after two minutes. late: the caller did not wait any longer; it counts once more when it ends.",
              (increase("cluster_commits_total", "result"), "{{result}}"), stack=True),
        Panel("Time of a commit", "Time of an object to the store and a head to etcd. With cluster.replication \"turn\" the end "
              "of each turn waits for it.",
              *((f'{quantile(share, "cluster_commit_seconds_bucket")} >= 0 or vector(0)', word)
                for share, word in ((0.5, "p50"), (0.95, "p95"))), unit="s"),
        Panel("Bytes to the store", "Bytes of objects per second that each node writes.",
              (rate("cluster_commit_bytes_total", "instance"), "{{instance}}"), unit="Bps", stack=True),
        Panel("Age of the oldest change", "Age of the oldest change that is not in the store, by node. The line is the "
              "threshold of an alert.", ("max by (instance) (@cluster_lag_seconds)", "{{instance}}"), unit="s",
              limits=((60, RED),)),
        Panel("Files left out", "Changed files of working directories per interval that were too large or too many for the object "
              "of a turn. They go later, or when the user leaves the node.",
              (increase("cluster_left_out_files_total", "instance"), "{{instance}}"), stack=True),
        Panel("Forwarded requests", "Requests per second that were passed on to the node with their user. unreached: it was "
              "tried again. lost: the connection broke, and the caller got node_lost.",
              (rate("cluster_forwarded_total", "result"), "{{result}}"), unit="reqps", stack=True),
        Panel("Leases and users lost", "Leases that ended before their node left, and users whose children were ended because "
              "another node may have them, per interval.",
              (increase("cluster_lease_lost_total"), "leases"), (increase("cluster_lost_users_total"), "users"),
              limits=((1, RED),)),
    ]),
])

CAPACITY = ("capacity", "pilotlight: capacity", "Utilisation, saturation and errors of resources: memory, processes, descriptors, CPU.", [
    ("Memory", [
        Panel("Memory of children by kind",
              "Whole process trees. anon, shmem and swap count against the budget; shared_file is shared by all children and "
              "does not. The lines: idle children are evicted, no new children, no turns without a child.",
              ("sum by (kind) (@memory_bytes)", "{{kind}}"), ("0.80 * sum(@memory_budget_bytes)", "80 % of the budget"),
              ("sum(@session_memory_limit_bytes)", "limit of one session"),
              ("0.90 * sum(@memory_budget_bytes)", "90 %"), ("0.95 * sum(@memory_budget_bytes)", "95 %"),
              unit="bytes", w=12),
        Panel("Budget used", "Memory that counts against the budget, by instance.",
              ('sum by (instance) (@memory_bytes{kind!="shared_file"}) / on (instance) '
               "(sum by (instance) (@memory_budget_bytes) > 0)", "{{instance}}"),
              unit="percentunit", limits=((0.8, YELLOW), (0.9, ORANGE), (0.95, RED)), w=6),
        Panel("Memory left on the host", "Available memory of the host or the server's container.",
              ("min by (instance) (@memory_available_bytes)", "{{instance}}"), unit="bytes", w=6),
        Panel("Memory of one child", "Children by memory, at every measurement.",
              ("sum by (le) (increase(@session_memory_bytes_bucket[$__rate_interval]))", "{{le}}"), kind="heatmap",
              unit="bytes", w=12),
        Panel("Evictions by reason", "Children stopped without ending their session, per interval.",
              (increase("evictions_total", "reason"), "{{reason}}"), stack=True, w=6),
        Panel("Memory is an estimate",
              "1: the kernel does not report memory by kind (gVisor); all resident memory counts, which is an overestimate.",
              ("max by (instance) (@memory_is_approximate)", "{{instance}}"), max=1, w=6),
    ]),
    ("Sessions and processes", [
        Panel("Sessions by state", "Sessions in memory, and their limit.",
              ("sum by (state) (@sessions)", "{{state}}"), ("sum(@sessions_limit)", "limit")),
        Panel("Children", "Live children, and their limit.",
              ('sum(@processes{kind="cli"})', "alive"), ("sum(@children_limit)", "limit")),
        Panel("Spares", "Children started ahead for new users, by state, and how many should be ready.",
              ("sum by (state) (@spares)", "{{state}}"), ("sum(@spares_wanted)", "wanted")),
        Panel("New users and spares", "Sessions of new users per interval. claimed: served by a spare. missed: none of the kind was "
              "ready. unfit: it no longer answered.", (increase("spare_claims_total", "result"), "{{result}}"), stack=True),
        Panel("Ends of spares", "Spares that ended without having served a session, per interval, by reason. not_started, died and "
              "hung are failures.", (increase("spare_ends_total", "reason"), "{{reason}}"), stack=True),
        Panel("Processes by kind", "cli: children. shim: their parents. descendant: tools, MCP servers and their "
              "descendants.", ("sum by (kind) (@processes)", "{{kind}}"), stack=True),
        Panel("Oldest idle and oldest turn",
              "Idle time of the longest idle child (limit: session.idle_timeout), and duration of the longest running turn "
              "(limit: session.turn_timeout).",
              ("max(@oldest_idle_seconds)", "idle"), ("max(@oldest_turn_seconds)", "turn"), unit="s"),
        Panel("Waits for tools of callers", "Turns that waited for results of the caller's tools, per interval, by end. answered: the "
              "results came. message: another message came. expired: session.tool_timeout passed. stopped: the child was stopped.",
              (increase("tool_waits_total", "end"), "{{end}}"), stack=True),
        Panel("Hibernation", "Idle children that are frozen (session.hibernate_after), and children frozen per interval.",
              ("sum(@sessions_frozen)", "frozen"), (increase("hibernations_total"), "per interval")),
        Panel("Zombies", "Unreaped processes among all that the server can see. A few short-lived ones are normal.",
              ("sum(@zombies)", "zombies"), limits=((20, RED),)),
        Panel("Lifetime of children", "Ended children per interval, by lifetime.",
              ("sum by (le) (increase(@session_lifetime_seconds_bucket[$__rate_interval]))", "{{le}}"), kind="heatmap",
              unit="s"),
    ]),
    ("Host and process", [
        Panel("Data directory writable", "1: the data directory is writable. 0: no session can start.",
              ("min by (instance) (@data_dir_writable)", "{{instance}}"), unit="none"),
        Panel("CLI", "1: the CLI's version was not reviewed; or the configured CLI does not start, and the last working version "
              "is in use.",
              ("max by (instance) (@cli_version_unjudged)", "{{instance}} not reviewed"),
              ("max by (instance) (@cli_fallback)", "{{instance}} fallback"), unit="none", limits=((1, RED),)),
        Panel("Isolation", "Instances whose children get each rung of isolation, and those where a configured rung is missing.",
              ("sum by (rung) (@isolation_info)", "{{rung}}"),
              ("sum by (rung) (@isolation_missing)", "{{rung}} missing"), unit="none"),
        Panel("Open files", "Open descriptors of the server, as a share of its limit. At the limit starts are refused and connections wait.",
              ("max by (instance) (@open_fds / @open_fds_limit)", "{{instance}}"), unit="percentunit",
              limits=((0.8, RED),), max=1),
        Panel("Pressure",
              "Share of the last ten seconds in which tasks on the host waited for the resource (PSI). known is 0 if the kernel "
              "does not report it; the other values are then invalid.",
              ("max by (resource) (@pressure_ratio)", "{{resource}}"), ("min(@pressure_is_known)", "known"),
              unit="percentunit", max=1),
        Panel("CPU of the server", "Cores used by the server itself, without children.",
              ("sum by (instance) (rate(@process_cpu_seconds_total[$__rate_interval]))", "{{instance}}"), unit="short"),
        Panel("Memory of the server", "Resident memory of the server itself, without children.",
              ("sum by (instance) (@process_resident_memory_bytes)", "{{instance}}"), unit="bytes"),
        Panel("Runtime lag, p99",
              "Delay of timers in the async runtime. Above 0.1 s the host has too few cores for its load.",
              (quantile(0.99, "runtime_lag_seconds_bucket"), "p99"), unit="s", limits=((0.1, ORANGE),)),
        Panel("Traffic of children", "Bytes per second written to and read from children.",
              (rate("stream_bytes_total", "stream"), "{{stream}}"), unit="Bps", stack=True),
    ]),
    ("Disk", [
        Panel("Space of the data directory", "Bytes of the file system that holds the data directory. free: for the server.",
              ("sum by (space) (@data_dir_bytes)", "{{space}}"), unit="bytes", stack=True),
        Panel("Inodes of the data directory", "Inodes of that file system. 0 where their number is not fixed.",
              ("sum by (space) (@data_dir_inodes)", "{{space}}"), stack=True),
        Panel("Sessions on disk", "Sessions and their files at the last round of the retention sweep.",
              ("sum(@sessions_on_disk)", "sessions"), ("sum(@sessions_on_disk_files)", "files")),
        Panel("Size of sessions", "Bytes of all sessions on disk at the last round of the retention sweep.",
              ("sum by (instance) (@sessions_on_disk_bytes)", "{{instance}}"), unit="bytes"),
        Panel("Deleted by retention", "Sessions that the retention rules deleted per interval, by reason; failed: deletions that "
              "are tried again.",
              (increase("retention_deleted_total", "reason"), "{{reason}}"),
              (increase("retention_failures_total"), "failed"), stack=True),
        Panel("Freed by retention", "Bytes of sessions that the retention rules deleted, per interval.",
              (increase("retention_freed_bytes_total"), "freed"), unit="bytes"),
        Panel("Age of the last sweep", "Time since a round of the retention sweep ended, or since the start of the server.",
              ("max by (instance) (time() - @retention_last_round_timestamp_seconds)", "{{instance}}"), unit="s",
              limits=((172800, RED),)),
    ]),
    ("Model's API", [
        Panel("Requests to the API", "Requests per second that the broker forwarded, by status of the response. none: no response.",
              (rate("upstream_requests_total", "status"), "{{status}}"), unit="reqps", stack=True),
        Panel("First byte of the API, p99", "Time from forwarding a request until its response began. No line: nothing was forwarded.",
              (quantile(0.99, "upstream_first_byte_seconds_bucket"), "p99"), unit="s"),
        Panel("Requests in flight", "Requests to the API without the end of their response, requests that wait for a slot, and "
              "connections of children to the broker.",
              ("sum(@upstream_in_flight)", "in flight"), ("sum(@upstream_waiting)", "waiting"),
              ("sum(@broker_connections)", "connections")),
        Panel("Tokens forwarded", "Tokens per second in responses that the broker forwarded, by model family and kind.",
              (rate("upstream_tokens_total", "model, kind"), "{{model}} {{kind}}"), stack=True),
        Panel("Refusals of the broker", "Requests of children per interval that the broker refused, by reason, and retries of the CLI.",
              (increase("broker_refusals_total", "reason"), "{{reason}}"), (increase("upstream_retries_total"), "retries"),
              stack=True),
        Panel("Renewals of OAuth tokens", "Renewals per interval, by outcome. rejected: the user has to log in again.",
              (increase("oauth_refreshes_total", "outcome"), "{{outcome}}"), stack=True),
        Panel("Connections to other hosts", "Connections of children to hosts of the allow list per interval, by outcome. "
              "not_allowed and address: a tool tried more than it may.",
              (increase("egress_connections_total", "outcome"), "{{outcome}}"), stack=True),
        Panel("Traffic to other hosts", "Bytes per second between children and hosts of the allow list.",
              (rate("egress_bytes_total", "direction"), "{{direction}}"), unit="Bps", stack=True),
    ]),
    ("Self-monitoring", [
        Panel("Age of the last sample", "Age of the memory and process metrics.",
              ("max by (instance) (time() - @last_sample_timestamp_seconds)", "{{instance}}"), unit="s",
              limits=((60, RED),)),
        Panel("Sample duration, p99", "Duration of one sampling round, without its pauses.",
              (quantile(0.99, "sample_duration_seconds_bucket"), "p99"), unit="s"),
        Panel("Failed samples", "Sampling errors per interval, by source.",
              (increase("sample_errors_total", "source"), "{{source}}"), stack=True),
        Panel("Render time of /metrics, p99", "Time to render a scrape.",
              (quantile(0.99, "metrics_render_seconds_bucket"), "p99"), unit="s", limits=((0.05, ORANGE),)),
    ]),
])

INCIDENT = ("incident", "pilotlight: incident", "Signals of an incident on one time axis, to find the first one that changed.", [
    ("Timeline", [
        Panel("Reachable", "Whether Prometheus can scrape each instance.", ("max by (instance) (@up)", "{{instance}}"),
              kind="state-timeline", mappings=UP, w=12, h=5),
        Panel("Admission", "Admission by memory, by instance.",
              ("max by (instance) (@admission_state)", "{{instance}}"), kind="state-timeline", mappings=ADMISSION, w=12, h=5),
        Panel("Alerts", "Firing and pending alerts.",
              ('ALERTS{alertname=~"Pilotlight.*",job=~"$job"}', ""), kind="table", w=12, h=6),
        Panel("Running since", "Start time of each server.",
              ("max by (instance) (@process_start_time_seconds) * 1000", "{{instance}}"), kind="stat",
              unit="dateTimeAsLocal", base=BLUE, w=12, h=6),
    ]),
    ("Children", [
        Panel("Unexpected exits", "Exits of children per interval that the server did not request, by reason.",
              (increase('exits_total{reason!~"evicted|drain"}', "reason"), "{{reason}}"), stack=True),
        Panel("Unhealthy sessions", "Sessions in backoff, with an open circuit, or stopping.",
              ('sum by (state) (@sessions{state=~"backoff|failed|stopping"})', "{{state}}"), stack=True),
        Panel("Failed starts", "Failed starts of children per interval, by reason.",
              (increase('spawns_total{outcome="failed"}', "reason"), "{{reason}}"), stack=True),
        Panel("Protocol errors", "Violations of the protocol in the output of children, per interval.",
              (increase("protocol_errors_total", "kind"), "{{kind}}"), stack=True),
        Panel("Ping latency, p99", "Time until a silent child answered a ping. No line: no ping was "
              "sent.", (quantile(0.99, "ping_seconds_bucket"), "p99"), unit="s"),
        Panel("Truncated output", "Truncations of a stream because of a limit, per interval.",
              (increase("truncations_total", "stream"), "{{stream}}"), stack=True),
    ]),
    ("Responses", [
        Panel("Stop steps", "Steps of the stop sequence per interval: interrupt, end of input, SIGTERM, kill of the tree.",
              (increase("stop_steps_total", "step"), "{{step}}"), stack=True),
        Panel("Time to stop, p99", "Time from a stop request to the exit of the child. killed: the child did not exit by itself.",
              (quantile(0.99, "stop_duration_seconds_bucket", "how"), "{{how}}"), unit="s"),
        Panel("Time to kill a tree, p99", "Time from the exit of a child until its process tree is gone, by method.",
              (quantile(0.99, "tree_kill_seconds_bucket", "rung"), "{{rung}}"), unit="s", limits=((1, RED),)),
        Panel("Leftovers killed", "Processes that outlived their child, per interval. marker: they had escaped the "
              "other methods.", (increase("leftovers_killed_total", "rung"), "{{rung}}"), stack=True),
        Panel("Swept at startup", "Processes of a previous run of the server that this one found and killed.",
              ("sum by (instance) (@swept_at_start_total)", "{{instance}}")),
        Panel("Actor panics", "Panics per interval. Each is a defect of pilotlight: report it with the log.",
              (increase("actor_panics_total", "actor"), "{{actor}}"), limits=((1, RED),), stack=True),
    ]),
])

DASHBOARDS = (OVERVIEW, CAPACITY, INCIDENT)

# Annotations on the time axis of every dashboard.
ANNOTATIONS = (
    ("Crash loops", RED, "sum by (instance) (increase(@crash_loops_total[1m])) > 0", "a session crashes repeatedly"),
    ("Restarts of the server", ORANGE, "changes(@process_start_time_seconds[2m]) > 0", "the server started"),
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
    """README.md with the current list of panels."""
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
            print(f"dashboards/{name} is outdated: run dashboards/build.py", file=sys.stderr)
        return bool(stale)
    for name in stale:
        (HERE / name).write_text(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
