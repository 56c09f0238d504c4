#!/usr/bin/env python3
"""The kernel as the peer: a memory cgroup with a hard limit, and swap on zram (lz4 unless told) and on a file.

`run` uses class Cage; by hand:  kernel_swap.py --limit 544M --swap zram+file -- COMMAND...
A keeper process of its own sets everything up and takes it down when its standard input closes, so that no way of ending
the caller (an error, Ctrl-C, SIGKILL) leaves a swap area, a zram device, a changed setting or a cgroup behind.
Needs root. It may change nothing that it does not restore.
"""
import argparse
import glob
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time

SWAPS = ("none", "file", "zram", "zram+file")
CLUSTER = "/proc/sys/vm/page-cluster"


class Refused(Exception):
    """This machine cannot be set up; the text says why."""


def read(path):
    with open(path) as file:
        return file.read().strip()


def write(path, value):
    try:
        with open(path, "w") as file:
            file.write(str(value))
    except OSError as error:
        raise Refused(f"cannot write {value} to {path}: {error.strerror}") from error


def tool(name, *arguments):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        raise Refused(f"the command {name} is missing (package util-linux)")
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{name} {' '.join(arguments)}: {done.stderr.strip()}")


def size_of(text):
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    return int(text[:-1]) << shift if shift else int(text)


def memory_cgroup():
    """The mount point of the memory controller and its version."""
    for line in read("/proc/self/mounts").splitlines():
        _, point, kind, opts = line.split()[:4]
        if kind == "cgroup" and "memory" in opts.split(","):
            return point, 1
        if kind == "cgroup2" and "memory" in read(point + "/cgroup.controllers").split():
            return point, 2
    raise Refused("no memory cgroup is mounted")


class Keeper:
    """What is set up, with one undo per step, taken in reverse."""

    def __init__(self, plan):
        self.plan, self.undo, self.file, self.file_peak, self.zram = plan, [], None, 0, None

    def set_up(self):
        if os.geteuid() != 0:
            raise Refused("needs root (cgroup limit and swap)")
        self.set_up_cgroup()
        if self.plan["swap"] != "none":
            if "zram" in self.plan["swap"]:
                self.set_up_zram()
            if "file" in self.plan["swap"]:
                self.set_up_file()
            if self.plan["page_cluster"] is not None:
                self.change(CLUSTER, self.plan["page_cluster"])
            for path in glob.glob("/sys/kernel/mm/transparent_hugepage/hugepages-*kB/enabled") if self.plan["folios"] else []:
                if int(path.split("hugepages-")[1].split("kB")[0]) <= self.plan["folios"]:
                    self.change(path, "madvise")

    def change(self, path, value):
        old = read(path)
        chosen = [word[1:-1] for word in old.split() if word.startswith("[")]
        self.undo.append(lambda: write(path, chosen[0] if chosen else old))
        write(path, value)

    def set_up_cgroup(self):
        point, self.version = memory_cgroup()
        if self.version == 2 and "memory" not in read(point + "/cgroup.subtree_control").split():
            write(point + "/cgroup.subtree_control", "+memory")  # stays: others may have come to rely on it meanwhile
        others = glob.glob(f"{point}/qmem-bench-*")
        if others:  # settings of the machine are changed and restored: only one at a time can do that
            raise Refused(f"another benchmark is running; if none is, remove what its killed keeper left: {others[0]} and its swap areas")
        self.cgroup = f"{point}/qmem-bench-{os.getpid()}"
        try:
            os.mkdir(self.cgroup)
        except OSError as error:
            raise Refused(f"cannot make the cgroup {self.cgroup}: {error.strerror}") from error
        self.undo.append(self.remove_cgroup)
        write(self.cgroup + ("/memory.limit_in_bytes" if self.version == 1 else "/memory.max"), self.plan["limit"])

    def remove_cgroup(self):
        for _ in range(100):
            for pid in read(self.cgroup + "/cgroup.procs").split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                return os.rmdir(self.cgroup)
            except OSError as error:
                last = error
                time.sleep(0.1)
        raise Refused(f"cannot remove {self.cgroup}: {last.strerror}")

    def kill_inhabitants(self):
        """Before swapoff: what the dead held in swap need not be read back."""
        for _ in range(100):
            pids = read(self.cgroup + "/cgroup.procs").split()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)

    def set_up_zram(self):
        control = "/sys/class/zram-control/hot_add"
        if not os.path.exists(control) and shutil.which("modprobe"):
            subprocess.run(["modprobe", "zram"], capture_output=True)
        if not os.path.exists(control):
            raise Refused("the kernel has no zram")
        number = read(control)  # reading adds a device
        self.undo.append(lambda: write("/sys/class/zram-control/hot_remove", number))
        self.zram = f"/sys/block/zram{number}"
        algorithms = read(self.zram + "/comp_algorithm").replace("[", "").replace("]", "").split()
        if self.plan["algorithm"] not in algorithms:
            raise Refused(f"zram has no {self.plan['algorithm']}, only {' '.join(algorithms)}")
        write(self.zram + "/comp_algorithm", self.plan["algorithm"])
        write(self.zram + "/disksize", self.plan["zram_bytes"])
        device = f"/dev/zram{number}"
        if not os.path.exists(device):
            major, minor = read(self.zram + "/dev").split(":")
            os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
            self.undo.append(lambda: os.unlink(device))
        self.swap_on(device, 100)

    def set_up_file(self):
        self.file = f"{self.plan['directory']}/qmem-bench-{os.getpid()}.swap"
        try:
            fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self.undo.append(lambda: os.unlink(self.file))
            os.posix_fallocate(fd, 0, self.plan["file_bytes"])
            os.close(fd)
        except OSError as error:
            raise Refused(f"cannot make a swap file of {self.plan['file_bytes']} bytes in {self.plan['directory']}: {error.strerror}") from error
        self.swap_on(self.file, 10)

    def swap_on(self, path, priority):
        tool("mkswap", path)
        tool("swapon", "-p", str(priority), path)
        self.undo.append(lambda: self.swap_off(path))

    def swap_off(self, path):
        """Pages of strangers in this swap go back to memory, which their own limits may refuse for a while."""
        for attempt in range(10):
            try:
                return tool("swapoff", path)
            except Refused:
                if attempt == 9:
                    raise
                time.sleep(1)

    def sample(self):
        for line in read("/proc/swaps").splitlines()[1:]:
            name, _, _, used = line.split()[:4]
            if name == self.file:
                self.file_peak = max(self.file_peak, int(used) << 10)

    def stats(self):
        self.sample()
        peak = self.cgroup + ("/memory.max_usage_in_bytes" if self.version == 1 else "/memory.peak")
        result = {"cgroup_peak_bytes": int(read(peak)) if os.path.exists(peak) else None, "swap_file_peak_bytes": self.file_peak}
        if self.zram:
            result["zram_memory_peak_bytes"] = int(read(self.zram + "/mm_stat").split()[4])
        return result

    def clean(self):
        """Every undo is tried, whatever the others do; the failures come back as text."""
        failures = []
        if getattr(self, "cgroup", None) and os.path.isdir(self.cgroup):
            self.kill_inhabitants()
        while self.undo:
            try:
                self.undo.pop()()
            except (Refused, OSError) as error:
                failures.append(str(error))
        return failures


def keep(plan):
    """The keeper: one JSON line when ready, one per `stats` asked for, one at the end; ends when its input does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(plan)
    answer = {}
    try:
        keeper.set_up()
        os.write(1, (json.dumps({"cgroup": keeper.cgroup}) + "\n").encode())
        while True:
            ready, _, _ = select.select([0], [], [], 0.5)
            keeper.sample()
            if ready and not os.read(0, 4096):
                break
            if ready:
                os.write(1, (json.dumps(keeper.stats()) + "\n").encode())
    except (Refused, OSError) as error:
        answer["refused"] = str(error)
    finally:
        answer["left_behind"] = keeper.clean()
        for failure in answer["left_behind"]:
            sys.stderr.write(f"kernel_swap: not cleaned up: {failure}\n")
        try:
            os.write(1, (json.dumps(answer) + "\n").encode())
        except OSError:
            pass


class Cage:
    """A limit, with or without swap, for the commands run in it. Refused says why there is none on this machine."""

    def __init__(self, limit, swap="none", directory="/var/tmp", zram_bytes=4 << 30, file_bytes=4 << 30, page_cluster=None, folios=0,
                 algorithm="lz4"):
        self.plan = {"limit": limit, "swap": swap, "directory": os.path.abspath(directory), "zram_bytes": zram_bytes,
                     "file_bytes": file_bytes, "page_cluster": page_cluster, "folios": folios, "algorithm": algorithm}

    def __enter__(self):
        self.keeper = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--keep", json.dumps(self.plan)],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        answer = json.loads(self.keeper.stdout.readline() or '{"refused": "the keeper process died"}')
        if "refused" in answer:
            self.keeper.wait()
            raise Refused(answer["refused"])
        self.cgroup = answer["cgroup"]
        return self

    def run(self, command, **more):
        def enter():
            write(self.cgroup + "/cgroup.procs", os.getpid())
        return subprocess.run(command, preexec_fn=enter, **more)

    def stats(self):
        self.keeper.stdin.write("stats\n")
        self.keeper.stdin.flush()
        return json.loads(self.keeper.stdout.readline())

    def __exit__(self, *_):
        self.keeper.stdin.close()
        while True:
            try:
                self.keeper.wait()
                return
            except KeyboardInterrupt:
                continue  # a second Ctrl-C must not overtake the cleaning


def main():
    if sys.argv[1:2] == ["--keep"]:
        return keep(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(description="Run a command under a memory limit with the kernel's swap.")
    parser.add_argument("--limit", type=size_of, default=size_of("544M"))
    parser.add_argument("--swap", choices=SWAPS, default="zram+file")
    parser.add_argument("--algorithm", default="lz4", help="of zram")
    parser.add_argument("--zram-size", type=size_of, default=size_of("4G"))
    parser.add_argument("--file-size", type=size_of, default=size_of("4G"))
    parser.add_argument("--dir", default="/var/tmp", help="directory on disk for the swap file")
    parser.add_argument("--page-cluster", type=int, help="vm.page-cluster meanwhile; default: as it is")
    parser.add_argument("--folios", type=int, default=0, help="allow multi-size huge pages up to this many KiB where advised")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        with Cage(args.limit, args.swap, args.dir, args.zram_size, args.file_size, args.page_cluster, args.folios, args.algorithm) as cage:
            code = cage.run(args.command).returncode
            print(json.dumps(cage.stats()), file=sys.stderr)
            return code
    except Refused as reason:
        print(f"kernel_swap: {reason}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
