//! What the kernel says about a process, and where a process may run.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// CPU time of a whole process so far, threads that have ended included, in nanoseconds.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write to the variable they are given and to nothing else.
    let failed = unsafe {
        let pid = pid as libc::pid_t;
        libc::clock_getcpuclockid(pid, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    if failed {
        return Err(io::Error::other(
            "the process has no CPU clock: it has ended",
        ));
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CPU time of each thread of a process so far, by the thread's name, in nanoseconds. Threads that have
/// ended are not in it.
pub fn cpu_by_thread(pid: u32) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // One that ends meanwhile isn't there any more.
        let read = |file| std::fs::read_to_string(task.join(file));
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        let ran = times.split(' ').next().and_then(|ns| ns.parse().ok());
        found.push((name.trim_end().to_owned(), ran.unwrap_or(0)));
    }
    Ok(found)
}

/// CPU time of the calling thread so far, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to the variable it is given; that clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes that only this process holds and has written to: what it costs the machine.
pub fn private_dirty(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib(&text, "Private_Dirty:")
        .map(|k| k * 1024)
        .ok_or_else(|| io::Error::other("no Private_Dirty"))
}

/// Resident bytes.
pub fn resident(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib(&text, "VmRSS:")
        .map(|k| k * 1024)
        .ok_or_else(|| io::Error::other("no VmRSS"))
}

/// Lets a child run on one core only; on a machine with one core it changes nothing.
pub fn pin(command: &mut Command, core: usize) {
    if std::thread::available_parallelism().map_or(1, usize::from) <= core {
        return;
    }
    // SAFETY: between fork and exec only a system call on a local variable is made.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Lets a child end when this process does, however that ends: a server has no input to notice it by.
/// The thread that starts the child must live as long as the child is wanted.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only a system call without memory is made.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
}

/// Raises the limit of open files to what the system allows, and says what that is. Children inherit it.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls read and write the structure they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}
