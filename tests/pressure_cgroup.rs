//! The cgroup of the process, from recorded files and from the kernel.

use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tiered_allocator::pressure::{
    Cgroup, Figures, Pressure, PressureError, PressureSource, Psi, Urgency,
};
use tiered_allocator::{Memory, MemoryBuilder, SizeError};

const MIB: u64 = 1 << 20;

/// A directory that holds these files.
fn tree(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (path, text) in files {
        write(root.path(), path, text);
    }
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(cgroup: &mut Cgroup) -> Pressure {
    cgroup.read(&Figures::default()).unwrap()
}

const V2_MOUNT: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
24 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";

/// As a container with its own cgroup namespace sees itself.
const V2_CONTAINER: &[(&str, &str)] = &[
    ("proc/self/cgroup", "0::/\n"),
    ("proc/self/mountinfo", V2_MOUNT),
    ("sys/fs/cgroup/memory.max", "536870912\n"),
    ("sys/fs/cgroup/memory.high", "max\n"),
    ("sys/fs/cgroup/memory.current", "530000000\n"),
    (
        "sys/fs/cgroup/memory.stat",
        "anon 104857600\nfile 419430400\nkernel 3000000\nshmem 1048576\nfile_mapped 9\n",
    ),
    (
        "sys/fs/cgroup/memory.pressure",
        "some avg10=1.50 avg60=0.50 avg300=0.10 total=2500000\n\
         full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    ),
];

#[test]
fn a_container_of_version_2_has_its_limit_and_the_cache_does_not_count() {
    let root = tree(V2_CONTAINER);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(512 * MIB));
    assert_eq!(cgroup.used_bytes().unwrap(), 101 * MIB);
    assert_eq!(read(&mut cgroup), Pressure::NONE);
    let psi = Psi::cgroup_at(root.path()).unwrap().stalls().unwrap();
    assert_eq!(psi.some.avg10, 1.5);
    assert_eq!(psi.some.total.as_millis(), 2500);
    assert_eq!(psi.full.total.as_micros(), 7);
}

#[test]
fn pressure_begins_above_the_high_mark_of_the_limit_and_ends_at_the_low_one() {
    let root = tree(V2_CONTAINER);
    write(root.path(), "sys/fs/cgroup/memory.max", "1000\n");
    let mut cgroup = Cgroup::at(root.path()).unwrap().marks(0.8, 0.5).unwrap();
    for (anon, urgency, excess) in [
        (800, Urgency::Idle, 0),
        (801, Urgency::High, 301),
        (900, Urgency::Critical, 400),
        (2000, Urgency::Critical, 1500),
        (501, Urgency::Low, 1),
        (500, Urgency::Idle, 0),
        (501, Urgency::Idle, 0),
    ] {
        let stat = format!("anon {anon}\nfile 9999\n");
        write(root.path(), "sys/fs/cgroup/memory.stat", &stat);
        assert_eq!(read(&mut cgroup), Pressure::new(urgency, excess), "{anon}");
    }
    assert!(Cgroup::at(root.path()).unwrap().marks(0.5, 0.5).is_err());
}

#[test]
fn a_container_that_is_resized_is_judged_by_its_new_limit() {
    let root = tree(V2_CONTAINER);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(read(&mut cgroup), Pressure::NONE);
    write(root.path(), "sys/fs/cgroup/memory.high", "104857600\n");
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(100 * MIB));
    let expected = Pressure::new(Urgency::Critical, 101 * MIB - 80 * MIB);
    assert_eq!(read(&mut cgroup), expected);
    write(root.path(), "sys/fs/cgroup/memory.high", "max\n");
    write(root.path(), "sys/fs/cgroup/memory.max", "max\n");
    assert_eq!(cgroup.limit_bytes().unwrap(), None);
    assert_eq!(read(&mut cgroup), Pressure::NONE);
}

/// A service in a slice, seen from the machine: the slice is the tighter one.
const V2_NESTED: &[(&str, &str)] = &[
    ("proc/self/cgroup", "0::/apps.slice/shop.service\n"),
    ("proc/self/mountinfo", V2_MOUNT),
    ("sys/fs/cgroup/memory.stat", "anon 900000000\n"),
    ("sys/fs/cgroup/apps.slice/memory.max", "1000000\n"),
    ("sys/fs/cgroup/apps.slice/memory.high", "max\n"),
    (
        "sys/fs/cgroup/apps.slice/memory.stat",
        "anon 950000\nshmem 0\n",
    ),
    (
        "sys/fs/cgroup/apps.slice/shop.service/memory.max",
        "2000000\n",
    ),
    ("sys/fs/cgroup/apps.slice/shop.service/memory.high", "max\n"),
    (
        "sys/fs/cgroup/apps.slice/shop.service/memory.stat",
        "anon 120000\nshmem 0\n",
    ),
];

#[test]
fn the_tightest_limit_around_the_process_counts_with_all_that_it_binds() {
    let root = tree(V2_NESTED);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(1_000_000));
    assert_eq!(cgroup.used_bytes().unwrap(), 120_000);
    // The slice wants 150,000 bytes back; the process' group has fewer.
    let expected = Pressure::new(Urgency::Critical, 120_000);
    assert_eq!(read(&mut cgroup), expected);
    write(
        root.path(),
        "sys/fs/cgroup/apps.slice/shop.service/memory.stat",
        "anon 400000\n",
    );
    assert_eq!(read(&mut cgroup).excess_bytes, 150_000);
}

#[test]
fn a_process_that_was_moved_is_found_again() {
    let root = tree(V2_NESTED);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(read(&mut cgroup).urgency, Urgency::Critical);
    write(root.path(), "proc/self/cgroup", "0::/new\n");
    write(root.path(), "sys/fs/cgroup/new/memory.max", "1000\n");
    write(root.path(), "sys/fs/cgroup/new/memory.stat", "anon 901\n");
    assert_eq!(read(&mut cgroup), Pressure::new(Urgency::High, 101));
    write(root.path(), "proc/self/cgroup", "0::/nowhere\n");
    let lost = cgroup.read(&Figures::default());
    assert!(
        matches!(lost, Err(PressureError::NotVisible { .. })),
        "{lost:?}"
    );
    write(root.path(), "proc/self/cgroup", "0::/new\n");
    assert_eq!(read(&mut cgroup), Pressure::new(Urgency::High, 101));
}

/// As Docker sets it up without a cgroup namespace: the name is the machine's,
/// and the mount shows the container's part alone.
const V1_DOCKER: &[(&str, &str)] = &[
    (
        "proc/self/cgroup",
        "11:cpu,cpuacct:/docker/4f2a\n4:memory:/docker/4f2a\n1:name=systemd:/docker/4f2a\n",
    ),
    (
        "proc/self/mountinfo",
        "40 35 0:30 /docker/4f2a /sys/fs/cgroup/cpu ro master:11 - cgroup cgroup rw,cpu,cpuacct\n\
         41 35 0:32 /docker/4f2a /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory\n",
    ),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n"),
    ("sys/fs/cgroup/memory/memory.use_hierarchy", "1\n"),
    (
        "sys/fs/cgroup/memory/memory.stat",
        "cache 99\nrss 1\nshmem 1\nhierarchical_memory_limit 134217728\n\
         total_cache 50000000\ntotal_rss 8388608\ntotal_shmem 1048576\n",
    ),
];

#[test]
fn version_1_counts_what_is_in_the_group_and_limits_of_groups_out_of_sight() {
    let root = tree(V1_DOCKER);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(128 * MIB));
    assert_eq!(cgroup.used_bytes().unwrap(), 9 * MIB);
    assert_eq!(read(&mut cgroup), Pressure::NONE);
}

#[test]
fn version_1_without_totals_has_its_own_figures() {
    let root = tree(V1_DOCKER);
    write(
        root.path(),
        "sys/fs/cgroup/memory/memory.stat",
        "cache 5000\nrss 2000\nshmem 300\n",
    );
    let cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(256 * MIB));
    assert_eq!(cgroup.used_bytes().unwrap(), 2300);
}

/// Memory in version 1, an empty hierarchy of version 2 beside it, and limits
/// at two levels of which the upper one is not inherited.
const HYBRID: &[(&str, &str)] = &[
    (
        "proc/self/cgroup",
        "9:name=systemd:/\n4:memory:/jobs/7\n1:cpu:/\n0::/\n",
    ),
    (
        "proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
    ),
    ("sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "9223372036854771712\n",
    ),
    ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "5000\n"),
    ("sys/fs/cgroup/memory/jobs/memory.use_hierarchy", "1\n"),
    ("sys/fs/cgroup/memory/jobs/memory.stat", "total_rss 4000\n"),
    (
        "sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes",
        "9000\n",
    ),
    (
        "sys/fs/cgroup/memory/jobs/7/memory.stat",
        "rss 10\ntotal_rss 3000\n",
    ),
];

#[test]
fn a_hybrid_hierarchy_is_limited_by_version_1() {
    let root = tree(HYBRID);
    let cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(5000));
    assert_eq!(cgroup.used_bytes().unwrap(), 3000);
    // The group of version 2 is the root, which has no file of its own here.
    let psi = Psi::cgroup_at(root.path()).unwrap().stalls();
    assert!(matches!(psi, Err(PressureError::Io { .. })), "{psi:?}");
}

#[test]
fn a_flat_group_of_an_old_kernel_does_not_bind_what_is_in_it() {
    let root = tree(HYBRID);
    write(
        root.path(),
        "sys/fs/cgroup/memory/jobs/memory.use_hierarchy",
        "0\n",
    );
    let cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(9000));
}

#[test]
fn no_limit_is_no_pressure() {
    let root = tree(V1_DOCKER);
    let files = [
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        (
            "memory.stat",
            "rss 1\ntotal_rss 1000000000000\nhierarchical_memory_limit 9223372036854771712\n",
        ),
    ];
    for (name, text) in files {
        write(root.path(), &format!("sys/fs/cgroup/memory/{name}"), text);
    }
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), None);
    assert_eq!(read(&mut cgroup), Pressure::NONE);
}

#[test]
fn a_system_without_cgroups_has_none_to_watch() {
    let nothing = tree(&[]);
    let refused = Cgroup::at(nothing.path());
    assert!(
        matches!(refused, Err(PressureError::Unknown(_))),
        "{refused:?}"
    );
    let no_controller = tree(&[("proc/self/cgroup", "1:name=systemd:/\n")]);
    let refused = Cgroup::at(no_controller.path());
    assert!(
        matches!(refused, Err(PressureError::Unknown(_))),
        "{refused:?}"
    );
}

#[test]
fn a_group_that_no_mount_shows_is_named() {
    for group in ["/other", "/../sibling"] {
        let root = tree(V2_CONTAINER);
        write(root.path(), "proc/self/cgroup", &format!("0::{group}\n"));
        let PressureError::NotVisible { group: named } = Cgroup::at(root.path()).unwrap_err()
        else {
            panic!("{group} is not visible");
        };
        assert_eq!(named, Path::new(group));
    }
}

#[test]
fn of_several_mounts_the_one_that_shows_most_is_taken() {
    let root = tree(V2_NESTED);
    let part = "50 22 0:26 /apps.slice/shop.service /own rw - cgroup2 cgroup2 rw\n";
    write(root.path(), "own/memory.max", "7\n");
    for mounts in [format!("{part}{V2_MOUNT}"), format!("{V2_MOUNT}{part}")] {
        write(root.path(), "proc/self/mountinfo", &mounts);
        let cgroup = Cgroup::at(root.path()).unwrap();
        assert_eq!(cgroup.limit_bytes().unwrap(), Some(1_000_000));
    }
    write(root.path(), "proc/self/mountinfo", part);
    let cgroup = Cgroup::at(root.path()).unwrap();
    assert_eq!(cgroup.limit_bytes().unwrap(), Some(7));
}

/// The file and what was missing in it.
fn malformed(read: Result<Pressure, PressureError>) -> (String, &'static str) {
    match read {
        Err(PressureError::Malformed { path, expected, .. }) => {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, expected)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_understood_is_an_error_that_names_the_file() {
    let cases = [
        ("proc/self/cgroup", "0\n", "cgroup"),
        ("proc/self/mountinfo", "30 22 0:26 / /sys\n", "mountinfo"),
        ("sys/fs/cgroup/memory.max", "lots\n", "memory.max"),
        ("sys/fs/cgroup/memory.max", "", "memory.max"),
        ("sys/fs/cgroup/memory.high", "-1\n", "memory.high"),
        ("sys/fs/cgroup/memory.stat", "file 3\n", "memory.stat"),
        ("sys/fs/cgroup/memory.stat", "anon many\n", "memory.stat"),
    ];
    for (path, text, name) in cases {
        let root = tree(V2_CONTAINER);
        write(root.path(), path, text);
        let read = Cgroup::at(root.path()).and_then(|mut c| c.read(&Figures::default()));
        let (file, expected) = malformed(read);
        assert_eq!(file, name, "{path} {text:?}");
        assert!(!expected.is_empty());
    }
}

#[test]
fn a_limit_without_figures_to_hold_against_it_is_an_error() {
    let root = tree(V2_CONTAINER);
    let mut cgroup = Cgroup::at(root.path()).unwrap();
    fs::remove_file(root.path().join("sys/fs/cgroup/memory.stat")).unwrap();
    let read = cgroup.read(&Figures::default());
    assert!(matches!(read, Err(PressureError::Io { .. })), "{read:?}");
}

#[test]
fn the_kernel_is_understood_where_it_has_cgroups() {
    match Cgroup::own() {
        Ok(mut cgroup) => {
            let (limit, used) = (cgroup.limit_bytes().unwrap(), cgroup.used_bytes());
            println!("limit {limit:?}, used {used:?}");
            // The root group of version 2 need not have a `memory.stat`.
            assert!(limit.is_none() || used.unwrap() > 0);
            cgroup.read(&Figures::default()).unwrap();
        }
        Err(PressureError::Unknown(_) | PressureError::NotVisible { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_memory_is_as_large_as_the_process_may_be() {
    match MemoryBuilder::from_cgroup() {
        Ok(builder) => {
            let memory = builder.background(false).build().unwrap();
            let total = memory.usage().total_bytes;
            let limit = Cgroup::own().ok().and_then(|c| c.limit_bytes().unwrap());
            println!("limit {limit:?}, total {total}");
            assert!(total > MIB);
            assert!(limit.is_none_or(|limit| total <= limit - limit / 10));
            let same = Memory::from_cgroup().unwrap().usage().total_bytes;
            assert_eq!(same, total);
        }
        Err(SizeError::Cgroup(PressureError::NotVisible { .. })) => {}
        Err(SizeError::Unknown) if cfg!(any(not(unix), tiered_allocator_portable)) => {}
        Err(other) => panic!("{other}"),
    }
}
