//! Snapshots of directories that stand still, change, and hold what cannot be kept.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Bench {
    place: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(place.path().join("state")).expect("room");
        Self { place }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.place.path().join("state").join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("below the state")).expect("room");
        std::fs::write(path, bytes).expect("room");
    }

    fn root(&self) -> OwnedFd {
        File::open(self.path("")).expect("a directory").into()
    }

    fn kept_at(&self) -> PathBuf {
        self.place.path().join("kept")
    }

    fn keep(&self, last: Option<&Kept>) -> Came {
        keep(&self.root(), &self.kept_at(), last, false, &BrokenOff::default())
    }

    fn kept(&self, last: Option<&Kept>) -> Kept {
        match self.keep(last) {
            Came::Kept(kept) => kept,
            other => panic!("it is kept: {other:?}"),
        }
    }

    fn blob(&self, digest: Digest) -> Vec<u8> {
        std::fs::read(self.kept_at().join(digest.to_string())).expect("it is kept")
    }

    fn manifest(&self, kept: &Kept) -> Manifest {
        Manifest::read(&self.blob(kept.made.manifest)).expect("a manifest")
    }

    fn content(&self, kept: &Kept, path: &str) -> Vec<u8> {
        self.blob(self.manifest(kept).files[path].blob)
    }

    fn names(&self) -> usize {
        self.kept_at().read_dir().expect("readable").count()
    }
}

#[test]
fn a_state_is_kept_as_it_is_and_only_when_it_changed() {
    let bench = Bench::new();
    assert!(matches!(bench.keep(None), Came::Nothing), "an empty directory is no state");
    std::fs::create_dir(bench.path("empty")).expect("room");
    assert!(matches!(bench.keep(None), Came::Nothing), "nor is one without a file");
    bench.write("n", b"1");
    bench.write("deep/run", b"#!/bin/sh\n");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(bench.path("deep/run"), mode).expect("ours");
    let first = bench.kept(None);
    let manifest = bench.manifest(&first);
    assert_eq!(manifest.dirs, ["deep", "empty"]);
    assert!(manifest.files["deep/run"].executable && !manifest.files["n"].executable);
    assert_eq!((first.made.files, first.made.bytes), (2, 11));
    assert_eq!(bench.content(&first, "n"), b"1");
    assert!(matches!(bench.keep(Some(&first)), Came::Nothing));
    let old = bench.kept_at().join(manifest.files["deep/run"].blob.to_string());
    let inode = old.metadata().expect("it is kept").ino();
    bench.write("n", b"2");
    let second = bench.kept(Some(&first));
    assert_eq!((bench.content(&second, "n"), bench.names()), (b"2".to_vec(), 3));
    assert_eq!(old.metadata().expect("it is kept").ino(), inode, "it was not copied again");
    // The same again under another time has the same name.
    bench.write("n", b"2");
    assert_eq!(bench.kept(Some(&second)).made, second.made);
}

#[test]
fn a_change_between_the_looks_and_during_the_copy_is_seen() {
    let bench = Bench::new();
    bench.write("a", b"1");
    bench.write("b", b"1");
    let quiet = || {
        pause();
        list(&bench.root(), &BrokenOff::default()).expect("a listing")
    };
    let before = quiet();
    bench.write("b", b"2");
    let copied =
        copy_all(&bench.root(), before.clone(), &bench.kept_at(), None, &BrokenOff::default());
    assert!(matches!(copied, Err(Failed::Changed(Some(_)))), "between the looks");
    std::fs::create_dir(bench.kept_at()).expect("room");
    let copy = |listing: &Listing| {
        copy_files(&bench.root(), listing, &bench.kept_at(), None, &BrokenOff::default())
    };
    assert!(matches!(copy(&before), Err(Failed::Changed(None))), "before it was opened");
    let before = quiet();
    std::fs::rename(bench.path("b"), bench.path("c")).expect("ours");
    assert!(matches!(copy(&before), Err(Failed::Changed(None))), "a name");
    let before = quiet();
    copy(&before).expect("nothing changed");
    bench.write("a", b"2");
    assert_ne!(quiet(), before, "after it was copied");
}

/// The job writes a long file over and over, in place, and then another one. The state of any one
/// moment is a beginning of the latest round, and behind it the round before.
#[test]
fn what_is_kept_is_the_state_of_one_moment_though_the_job_goes_on() {
    const LONG: usize = 4 << 20;
    let bench = Bench::new();
    bench.write("a", &vec![0; LONG]);
    bench.write("b", &[0]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u8;
            while !over.load(Ordering::Relaxed) {
                round = round.wrapping_add(1);
                let mut file = OpenOptions::new().write(true).open(bench.path("a")).expect("ours");
                for _ in 0..LONG >> 16 {
                    io::Write::write_all(&mut file, &[round; 1 << 16]).expect("room");
                }
                bench.write("b", &[round]);
                for _ in 0..round % 4 {
                    pause();
                }
            }
        });
        let mut last = None;
        for _ in 0..40 {
            let Came::Kept(kept) = bench.keep(last.as_ref()) else { continue };
            let (a, b) = (bench.content(&kept, "a"), bench.content(&kept, "b"));
            assert_eq!(a.len(), LONG);
            let whole = a[0] == a[LONG - 1];
            assert!(a.windows(2).filter(|pair| pair[0] != pair[1]).count() <= usize::from(!whole));
            let before = a[LONG - 1];
            let expected: &[&[u8]] =
                if whole { &[&[before], &[], &[before.wrapping_sub(1)]] } else { &[&[before]] };
            assert!(expected.contains(&b.as_slice()), "{} {before} {b:?}", a[0]);
            last = Some(kept);
        }
        over.store(true, Ordering::Relaxed);
        assert!(last.is_some(), "a quiet moment was found");
    });
}

#[test]
fn links_and_what_is_no_file_are_left_out_and_named() {
    let bench = Bench::new();
    bench.write("n", b"1");
    std::fs::create_dir(bench.path("a")).expect("room");
    symlink("/etc/passwd", bench.path("a/link")).expect("room");
    symlink("/etc", bench.path("link")).expect("room");
    nix::unistd::mkfifo(&bench.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("room");
    let kept = bench.kept(None);
    assert_eq!(bench.manifest(&kept).files.keys().collect::<Vec<_>>(), ["n"]);
    assert_eq!(kept.left_out.as_deref(), Some("\"a/link\" is a link"));
    // A directory that is exchanged for a link is not followed.
    let before = list(&bench.root(), &BrokenOff::default()).expect("a listing");
    std::fs::rename(bench.path("n"), bench.path("old")).expect("ours");
    symlink("/etc/passwd", bench.path("n")).expect("room");
    let copied = copy_files(&bench.root(), &before, &bench.kept_at(), None, &BrokenOff::default());
    assert!(matches!(copied, Err(Failed::Changed(None))));
}

#[test]
fn what_is_too_much_is_refused_with_the_bound() {
    let bench = Bench::new();
    let large = File::create(bench.path("large")).expect("room");
    large.set_len(limits::CHECKPOINT_BYTES_MAX + 1).expect("it takes no room");
    let Came::Refused(words) = bench.keep(None) else { panic!("it is refused") };
    assert!(words.contains("over 4294967296 bytes"), "{words}");
    std::fs::remove_file(bench.path("large")).expect("ours");
    for n in 0..=limits::CHECKPOINT_FILES_MAX {
        bench.write(&n.to_string(), b"");
    }
    let Came::Refused(words) = bench.keep(None) else { panic!("it is refused") };
    assert!(words.contains("more than 10000"), "{words}");
    std::fs::remove_dir_all(bench.path("")).expect("ours");
    std::fs::create_dir(bench.path("")).expect("room");
    for n in 0..5_000 {
        bench.write(&format!("{n}-{}", "x".repeat(240)), b"");
        bench.write(&format!("{}/{n}-{}", "y".repeat(250), "x".repeat(240)), b"");
    }
    let Came::Refused(words) = bench.keep(None) else { panic!("it is refused") };
    assert!(words.contains("too long together") || words.contains("more than"), "{words}");
    let broken_off = BrokenOff::default();
    broken_off.set();
    assert!(matches!(keep(&bench.root(), &bench.kept_at(), None, false, &broken_off), Came::Busy));
}
