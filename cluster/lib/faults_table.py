"""docs/faults.md, from the results that cluster/faults keeps."""
import json, os

# How the checker's anomalies are told in the table.
LOST = ("lost", "tail_lost", "gap", "stuck", "complete_lie")
DOUBLED = ("duplicate", "shown_twice")
REORDERED = ("order_difference", "time_order", "shown_out_of_order", "sender_order", "ack_order")
MADE_UP = ("ghost", "aborted_read", "corrupt", "wrong_conversation", "not_visible")

HEAD = """# Faults

Made by `cluster/faults` from real runs on the stack of [docs/cluster.md](cluster.md): three chat servers behind HAProxy, three
nodes each of Cassandra, Kafka and Redis, PostgreSQL, PgBouncer and an S3 server, all on {cpus} shared cores. Each fault meets {rate}
messages a second of 51 clients (15 pairs and a group of 21, who mark what they read), {before} s after the load is steady. All that
they number, are answered and are shown is judged by `tidings verify`'s rules.

- **recovery**: seconds from the fault until the last late message before five seconds in which all are on time: acknowledged and shown to
  all within twice the p99 of the time before the fault, which stands beside. *Healed*: the same from when the process is back and
  answers; *then late*: single ones in spite of both. A message counts from when it was meant to be sent.
- **meanwhile**: of the messages meant to be sent between fault and healing, the share that was on time, and the p50 from send to
  acknowledgement and to the last reader.
- **pause**: the longest time from send to acknowledgement, and to the last reader.
- **told**: the longest time until a sender knew that its message is taken, or that nothing is for now.
- **lost** has gaps and messages without an answer, **reordered** any difference in order, **ghosts** what nobody sent; *other* are the
  checker's other anomalies and what it can't prove.
- **busy**: the machine's share of CPU in use while the drill ran, and of it the share that the hypervisor took (steal). Other work
  shared the machine: times are upper bounds.

The embedded server's disk is broken by tests: filled under load 20 times (`crates/server/tests/disk_full.rs`), failing to sync 10 times
(`disk_error.rs`), and the server is killed 20 times (`kill.rs`); each ends with the same checker.
"""


def count(result, kinds):
    return sum(result["verify"]["anomalies"].get(kind, 0) for kind in kinds)


def time_of(value, digits=1):
    return "never" if value is None else f"{value:.{digits}f}"


def judged(result):
    verify = result["verify"]
    known = LOST + DOUBLED + REORDERED + MADE_UP
    other = sum(number for kind, number in verify["anomalies"].items() if kind not in known)
    return [str(count(result, kinds)) for kinds in (LOST, DOUBLED, REORDERED, MADE_UP)] + [str(other + verify["unproven"])]


def busy(result):
    machine = result["machine"]
    return f"{1 - machine['idle']:.0%}, {machine['steal']:.0%}"


def row(result):
    if result.get("failed"):
        return [result["expected"], f"the drill failed: {result['failed']}"]
    met = result["met"]["faults"][0]
    healed, limit = met["after_healed"], result["limit"]
    seen = healed if result["since_healed"] else met["recovery"]
    recovery = f"{time_of(met['recovery'])} (healed {time_of(healed)}" + (f", then {met['late_afterwards']} late)" if met["late_afterwards"] else ")")
    if limit is not None:
        recovery += "" if seen is not None and seen <= limit else " **late**"
    meanwhile = f"{met['on_time_meanwhile']:.0%}; {time_of(met['meanwhile_to_ack'][0], 2)}, {time_of(met['meanwhile_to_delivery'][0], 2)}"
    return [f"{met['fault']}", result["expected"], recovery, f"{result['met']['before_p99']:.2f}",
            meanwhile, f"{time_of(met['longest_to_ack'])}, {time_of(met['longest_to_delivery'])}",
            time_of(met["longest_untold"]), str(met["reconnections"]), f"{result['verify']['acked']:,}", *judged(result), busy(result)]


def write_table(folder, names, path, rate, before):
    def read(name):
        file = os.path.join(folder, f"{name}.json")
        if not os.path.exists(file):
            return None
        with open(file) as text:
            return json.load(text)

    results = [result for result in map(read, names) if result]
    columns = ["fault", "expected", "recovery", "p99 before", "meanwhile", "pause: ack, delivery", "told", "reconnections", "acked",
               "lost", "doubled", "reordered", "ghosts", "other", "busy, steal"]
    lines = [HEAD.format(cpus=os.cpu_count(), rate=rate, before=before), "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row(result)) + " |" for result in results]
    if results:
        dates, loads = [[what(result) for result in results] for what in (lambda r: r["date"], lambda r: r["machine"]["load"])]
        lines += ["", f"Runs of {min(dates)} to {max(dates)} UTC; load average at their ends {min(loads):.1f} to {max(loads):.1f}."]
    storm = read("random")
    if storm:
        lines += ["", "## Random kills and hangs", "",
                  f"`cluster/faults --random {storm['count']} --minutes {storm['minutes']:g} --seed {storm['seed']}`: any process of the stack, killed "
                  "(`kill -9`) or hung (SIGSTOP) for 1 to 15 s, also while others are.", ""]
        if storm.get("failed"):
            lines += [f"The run failed: {storm['failed']}"]
        else:
            met = storm["met"]["faults"][0]
            lost, doubled, reordered, ghosts, other = judged(storm)
            lines += [f"{storm['date']} UTC: {storm['verify']['messages']:,} messages, {storm['verify']['acked']:,} acknowledged, "
                      f"{storm['verify']['delivered']:,} shown; {lost} lost, {doubled} doubled, {reordered} reordered, {ghosts} ghosts, {other} other. "
                      f"Of the messages, {1 - met['late'] / max(met['messages'], 1):.1%} were on time (twice the p99 before, {storm['met']['before_p99']:.2f} s); "
                      f"longest to an acknowledgement {time_of(met['longest_to_ack'])} s, to delivery {time_of(met['longest_to_delivery'])} s; "
                      f"nobody was shown anything for {time_of(met['longest_silence'])} s at most; {met['reconnections']} reconnections; machine busy, steal: {busy(storm)}."]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
