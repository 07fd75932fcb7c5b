"""The processes of a running stack, for cluster/faults: killed, hung, cut off, started again, healed."""
import contextlib, json, os, shutil, signal, subprocess, sys, threading, time, urllib.request

CLUSTER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START_DEADLINE = 150


def shell(script, **more):
    """Runs the stack's own functions."""
    script = f'. "{CLUSTER}/lib/common.sh"; for s in "{CLUSTER}"/lib/*.sh; do . "$s"; done; {script}'
    run = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, text=True, timeout=START_DEADLINE + 30, **more)
    if run.returncode:
        raise RuntimeError(f"{script.split('done; ')[1]}: exit code {run.returncode}")
    return run.stdout


ENV = dict(line.split("=", 1) for line in shell(
    'for v in ${!CHAT_*} ${!HAPROXY_*} ${!KAFKA_*} ${!REDIS_*} STACK; do [ "${!v@a}" = a ] || echo "$v=${!v}"; done; '
    'echo "BINARY=$(chat_binary)"; echo "REDIS_MODE=$(redis_mode)"').splitlines() if "=" in line)
HOME = os.path.join(ENV["STACK"], "faults")
STARTING = threading.Lock()
THREE = (1, 2, 3)
CHAT = [f"chat{n}" for n in THREE]
KAFKA = [f"kafka{n}" for n in THREE]
CASSANDRA = [f"cassandra{n}" for n in THREE]
REDIS = [f"redis{n}" for n in THREE]
SENTINELS = [f"sentinel{n}" for n in THREE]
ALL = CHAT + KAFKA + CASSANDRA + REDIS + SENTINELS + ["postgres", "pgbouncer", "s3", "haproxy", "prometheus"]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- processes ---

def service(name):
    return {"sentinel": "redis", "pgbouncer": "postgres", "s": "s3"}.get(name.rstrip("123"), name.rstrip("123"))


def pid(name):
    """Its pid, if it runs: the start time in the pid file must be its own."""
    try:
        with open(os.path.join(ENV["STACK"], "run", name)) as file:
            number, started = file.read().split()
        with open(f"/proc/{number}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return int(number) if fields[0] != "Z" and fields[19] == started else None


def send(name, number):
    running = pid(name)
    if running:
        os.kill(running, number)
    return running


def kill(*names):
    for name in names:
        keep_log(name)
        send(name, signal.SIGKILL)
    for name in names:
        while pid(name):
            time.sleep(0.02)


def hang(*names):
    for name in names:
        send(name, signal.SIGSTOP)


def resume(*names):
    for name in names:
        send(name, signal.SIGCONT)


def keep_log(name):
    """A process that is started again begins its log anew; what a chat server wrote before may be evidence."""
    log = os.path.join(ENV["STACK"], "log", f"{name}.log")
    if name in CHAT and os.path.exists(log):
        with open(log, "rb") as old, open(os.path.join(HOME, f"{name}.log"), "ab") as kept:
            shutil.copyfileobj(old, kept)


def start(*names, wrap=""):
    """Starts what doesn't run, without waiting until it answers. `wrap` goes before a chat server's command line."""
    # A Sentinel that finds no Redis takes that for a failure.
    for name in sorted(names, key=SENTINELS.__contains__):
        number = name[-1]
        command = {"chat": f"chat_run {number} {wrap}", "sent": f'spawn {name} "127.0.0.{number}:$REDIS_SENTINEL_PORT" '
                   f'redis-sentinel "$STACK/conf/{name}.conf"', "kafk": f"kafka_node {number}"}.get(name[:4], f"{service(name)}_start")
        # A port may be held for a moment after a kill.
        for _ in range(20):
            # Two at once could both start what doesn't run.
            with contextlib.suppress(RuntimeError), STARTING:
                shell(command, stderr=subprocess.DEVNULL)
            time.sleep(0.5)
            if pid(name):
                break


def ready(*names):
    """Waits until these answer."""
    services = sorted({service(name) for name in names})
    shell("; ".join(f"{service}_ready" for service in services))
    if "chat" in services or "haproxy" in services:
        shell("for n in 1 2 3; do await haproxy taken chat_is_up $n; done")


# --- the network, by rules in a table of our own ---

def cut(*rules):
    """Drops or rejects what leaves a process of this machine and matches."""
    lines = ["table inet tidings_faults {", "chain out {", "type filter hook output priority 0", *rules, "}", "}"]
    subprocess.run(["nft", "-f", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def uncut():
    subprocess.run(["nft", "delete", "table", "inet", "tidings_faults"], stderr=subprocess.DEVNULL, check=False)


def heal():
    """All processes of the stack run and answer, nothing is cut."""
    uncut()
    resume(*ALL)
    gone = [name for name in ALL if not pid(name)]
    if gone:
        say(f"starting {' '.join(gone)}")
        start(*gone)
    ready(*ALL)


# --- who is who at the moment ---

def figure(number, name):
    with urllib.request.urlopen(f"http://127.0.0.{number}:{ENV['CHAT_ADMIN_PORT']}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.split()[0] == name))


def owner():
    """The chat server that routes most partitions."""
    return f"chat{max(THREE, key=lambda number: figure(number, 'chat_kafka_owned'))}"


def leader():
    """The broker that leads most partitions of the log."""
    seen = json.loads(subprocess.run(["kcat", "-b", f"127.0.0.1:{ENV['KAFKA_PORT']},127.0.0.2:{ENV['KAFKA_PORT']}", "-L", "-J", "-t", "messages"],
                                     stdout=subprocess.PIPE, timeout=20, check=True).stdout)
    leads = [part["leader"] for part in seen["topics"][0]["partitions"]]
    return f"kafka{max(THREE, key=leads.count)}"


def primary():
    return f"redis{shell('redis_primary').strip().split(':')[0][-1]}"


def others(of, names):
    return [name for name in names if name != of]
