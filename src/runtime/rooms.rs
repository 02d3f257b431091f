//! The places where jobs run: a pool of directories, each for one job at a time.
//!
//! Knows nothing of jobs. Shape: `ROOMS/N/{work,tmp,checkpoint}`, made when first needed; `work` is
//! a job's working directory, `tmp` its TMPDIR, in `checkpoint` it leaves its state. A room that
//! its job left empty and unchanged is used again, which costs three system calls; any other is
//! renamed to `gone-K`, which frees its number at once, and removed by a thread of its own. Where
//! that thread falls behind, who gives a room back waits for it. What an earlier life left is
//! removed in the same way.
//! Law: a room that is taken is empty, with the modes and marks of a fresh one (tests below).

mod remove;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, StatxFlags};
use tokio::sync::{mpsc, oneshot};

use crate::proto::limits;
use crate::proto::time::Monotonic;
use crate::runtime::entropy;
use crate::runtime::rundir::PRIVATE_MODE;

pub use remove::remove_tree;

/// A change has another time than one that lies so far back.
const CLOCK_STEP: Duration = Duration::from_secs(1);
/// How the names of directories begin that are to be removed.
const GONE: &str = "gone-";

/// The pool.
#[derive(Debug)]
pub struct Rooms {
    directory: PathBuf,
    state: RefCell<State>,
    remover: mpsc::Sender<Chore>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Room>,
    /// Numbers below `next` that no room has.
    vacant: BTreeSet<u32>,
    next: u32,
    gone: u64,
}

#[derive(Debug)]
enum Chore {
    Remove(PathBuf),
    Tell(oneshot::Sender<()>),
}

/// A directory that one job has to itself until it is given back.
#[derive(Debug)]
pub struct Room {
    number: u32,
    directory: PathBuf,
    work: PathBuf,
    tmp: PathBuf,
    checkpoint: PathBuf,
    fresh: [Marks; 4],
    /// The times of the last change of the four, as they are while nobody changes anything.
    settled: Option<[Changed; 4]>,
    /// Those that were seen last, and when that was for the first time.
    seen: Option<([Changed; 4], Monotonic)>,
}

/// The time of a change as the file system keeps it: seconds and nanoseconds.
type Changed = (i64, u32);

/// What tells whether a directory is as it was made.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    inode: u64,
    device: (u32, u32),
    mode: u16,
    owner: (u32, u32),
    attributes: u64,
    /// Bytes of the names of its extended attributes.
    extended: usize,
}

impl Room {
    fn make(directory: PathBuf, number: u32) -> io::Result<Self> {
        let make = |path: &Path| DirBuilder::new().mode(PRIVATE_MODE).create(path);
        let [work, tmp, checkpoint] =
            ["work", "tmp", "checkpoint"].map(|name| directory.join(name));
        make(&directory)?;
        let made = [&work, &tmp, &checkpoint].into_iter().try_for_each(|path| make(path));
        let made = made.and_then(|()| {
            let mut seen = vec![];
            for path in [&directory, &work, &tmp, &checkpoint] {
                seen.push(Marks::of(&open(path)?)?);
            }
            Ok(seen.try_into().expect("four went in"))
        });
        match made {
            Ok(fresh) => {
                let (settled, seen) = (None, None);
                Ok(Self { number, directory, work, tmp, checkpoint, fresh, settled, seen })
            }
            Err(error) => {
                // There is nothing in it that could hold it up.
                let _ = remove_tree(&directory);
                Err(error)
            }
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The directory with the three others.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The job's working directory.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Where the job leaves its state.
    #[must_use]
    pub fn checkpoint(&self) -> &Path {
        &self.checkpoint
    }

    /// Opens the working directory, which its job may have moved away or replaced by a link.
    ///
    /// # Errors
    /// It is not there any more, or it is another one.
    pub fn open_work(&self) -> io::Result<OwnedFd> {
        open_same(&self.work, &self.fresh[1])
    }

    /// Opens the directory with the job's state, as [`Room::open_work`].
    ///
    /// # Errors
    /// It is not there any more, or it is another one.
    pub fn open_checkpoint(&self) -> io::Result<OwnedFd> {
        open_same(&self.checkpoint, &self.fresh[3])
    }

    /// Whether it is as it was when it was made. Whatever is done to a directory, its entries,
    /// mode, owner or attributes, moves the time of its last change, which nobody can set: so a
    /// look at that is enough, once it lies far enough back for a change to move it.
    fn is_unspoilt(&mut self) -> bool {
        let changed = self.changed();
        if self.settled.is_some() && self.settled == changed {
            return true;
        }
        let unspoilt = self.has_nothing_new();
        let now = entropy::now().mono;
        let since = match self.seen {
            Some((times, since)) if Some(times) == changed => since,
            _ => now,
        };
        self.seen = changed.map(|times| (times, since));
        // A file system that keeps whole seconds alone is never trusted.
        let is_fine = |(_, nanos): &Changed| *nanos != 0;
        let is_old = now.since(since) >= CLOCK_STEP;
        self.settled = changed.filter(|times| unspoilt && is_old && times.iter().all(is_fine));
        unspoilt
    }

    fn changed(&self) -> Option<[Changed; 4]> {
        let look = |path: &Path| -> Option<Changed> {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let seen = fs::statx(fs::CWD, path, flags, StatxFlags::CTIME).ok()?;
            Some((seen.stx_ctime.tv_sec, seen.stx_ctime.tv_nsec))
        };
        let own = [&self.work, &self.tmp, &self.checkpoint];
        Some([look(&self.directory)?, look(own[0])?, look(own[1])?, look(own[2])?])
    }

    /// Looks at everything.
    fn has_nothing_new(&self) -> bool {
        let look = |path: &Path, fresh: &Marks, names: &[&std::ffi::CStr]| -> io::Result<bool> {
            let directory = open(path)?;
            if Marks::of(&directory)? != *fresh {
                return Ok(false);
            }
            for entry in Dir::read_from(&directory)? {
                if !names.contains(&entry?.file_name()) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let [room, work, tmp, checkpoint] = &self.fresh;
        let own = [c".", c"..", c"work", c"tmp", c"checkpoint"];
        look(&self.directory, room, &own).unwrap_or(false)
            && look(&self.work, work, &own[..2]).unwrap_or(false)
            && look(&self.tmp, tmp, &own[..2]).unwrap_or(false)
            && look(&self.checkpoint, checkpoint, &own[..2]).unwrap_or(false)
    }
}

/// Opens a directory, unless it is another one by now.
fn open_same(path: &Path, fresh: &Marks) -> io::Result<OwnedFd> {
    let opened = open(path)?;
    let seen = Marks::of(&opened)?;
    if (seen.inode, seen.device) != (fresh.inode, fresh.device) {
        return Err(io::Error::other("it is not the one that the job was given"));
    }
    Ok(opened)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::open(path, flags, Mode::empty())?)
}

impl Marks {
    fn of(directory: &OwnedFd) -> io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID;
        let seen = fs::statx(directory, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Self {
            inode: seen.stx_ino,
            device: (seen.stx_dev_major, seen.stx_dev_minor),
            mode: seen.stx_mode,
            owner: (seen.stx_uid, seen.stx_gid),
            attributes: seen.stx_attributes.bits(),
            // A file system without any has none.
            extended: fs::flistxattr_query(directory).unwrap_or(0),
        })
    }
}

impl Rooms {
    /// Takes over a directory, which must exist, and has all that is in it removed meanwhile.
    ///
    /// # Errors
    /// The directory cannot be read, or no thread be started.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        let mut names = vec![];
        for entry in directory.read_dir()? {
            names.push(entry?.file_name());
        }
        let number = |name: &std::ffi::OsString| -> Option<u64> {
            name.to_str()?.strip_prefix(GONE)?.parse().ok()
        };
        let mut gone = names.iter().filter_map(number).max().map_or(0, |last| last + 1);
        let mut left = vec![];
        for name in names {
            let path = directory.join(&name);
            if number(&name).is_some() {
                left.push(path);
                continue;
            }
            let aside = directory.join(format!("{GONE}{gone}"));
            gone += 1;
            match std::fs::rename(&path, &aside) {
                Ok(()) => left.push(aside),
                Err(_) => left.push(path),
            }
        }
        let (remover, chores) = mpsc::channel(limits::ROOMS_GOING_MAX);
        let thread = std::thread::Builder::new().name("ucp-rooms".into());
        thread.spawn(move || serve(left, chores))?;
        let state = RefCell::new(State { gone, ..State::default() });
        Ok(Self { directory, state, remover })
    }

    /// Takes a room; it is made where none is free.
    ///
    /// # Errors
    /// None can be made, most likely because the disk is full.
    pub fn take(&self) -> io::Result<Room> {
        let state = &mut *self.state.borrow_mut();
        if let Some(room) = state.free.pop() {
            return Ok(room);
        }
        loop {
            let vacant = state.vacant.pop_first();
            let number = vacant.unwrap_or(state.next);
            match Room::make(self.directory.join(number.to_string()), number) {
                // Something is there that cannot be moved away.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    state.vacant.extend(vacant);
                    return Err(error);
                }
                Ok(room) => {
                    state.next = state.next.max(number + 1);
                    return Ok(room);
                }
            }
            state.next = state.next.max(number + 1);
        }
    }

    /// Gives a room back. `clean` says that nothing of its job can still write to it.
    pub async fn give_back(&self, mut room: Room, clean: bool) {
        if clean && room.is_unspoilt() {
            self.state.borrow_mut().free.push(room);
            return;
        }
        let path = {
            let state = &mut *self.state.borrow_mut();
            let aside = self.directory.join(format!("{GONE}{}", state.gone));
            state.gone += 1;
            match std::fs::rename(&room.directory, &aside) {
                Ok(()) => {
                    state.vacant.insert(room.number);
                    aside
                }
                // The number is not used again in this life.
                Err(_) => room.directory,
            }
        };
        // The thread ends only with this.
        let _ = self.remover.send(Chore::Remove(path)).await;
    }

    /// Waits until all that was to be removed is, but no longer than that.
    pub async fn settle(&self, within: Duration) {
        let (tell, done) = oneshot::channel();
        let asked = async {
            if self.remover.send(Chore::Tell(tell)).await.is_ok() {
                let _ = done.await;
            }
        };
        // What is left then is removed at the next start.
        let _ = tokio::time::timeout(within, asked).await;
    }
}

/// Removes until the pool is gone.
fn serve(left: Vec<PathBuf>, mut chores: mpsc::Receiver<Chore>) {
    let remove = |path: PathBuf| {
        if let Err(error) = remove_tree(&path) {
            tracing::warn!("cannot remove {} as a whole: {error}", path.display());
        }
    };
    left.into_iter().for_each(remove);
    while let Some(chore) = chores.blocking_recv() {
        match chore {
            Chore::Remove(path) => remove(path),
            Chore::Tell(tell) => drop(tell.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(60);

    fn names(directory: &Path) -> Vec<String> {
        let entries = directory.read_dir().expect("readable").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_room_left_as_it_was_is_used_again_and_any_other_is_made_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let rooms = Rooms::open(directory.path().to_owned()).expect("opened");
        assert_eq!(names(directory.path()), [""; 0], "made when needed");
        let room = rooms.take().expect("room");
        let other = rooms.take().expect("room");
        assert_eq!((room.number(), other.number()), (0, 1));
        rooms.give_back(other, true).await;
        let first = room.fresh[1].inode;
        rooms.give_back(room, true).await;
        let room = rooms.take().expect("room");
        assert_eq!((room.number(), room.fresh[1].inode), (0, first));
        rooms.give_back(room, true).await;
        let spoil: [&dyn Fn(&Room); 7] = [
            &|room| std::fs::write(room.checkpoint().join("file"), "").expect("room"),
            &|room| std::fs::write(room.work().join("file"), "").expect("room"),
            &|room| std::fs::create_dir(room.tmp.join("a")).expect("room"),
            &|room| std::fs::write(room.directory().join("file"), "").expect("room"),
            &|room| {
                let mode = std::fs::Permissions::from_mode(0o770);
                std::fs::set_permissions(room.work(), mode).expect("ours");
            },
            &|room| {
                std::fs::rename(room.work(), room.directory().join("old")).expect("ours");
                std::fs::create_dir(room.work()).expect("room");
            },
            &|room| std::fs::remove_dir(room.work()).expect("ours"),
        ];
        for (at, spoil) in spoil.iter().enumerate() {
            let mut room = rooms.take().expect("room");
            assert_eq!(room.number(), 0);
            spoil(&room);
            assert!(!room.is_unspoilt(), "spoilt in way {at}");
            rooms.give_back(room, true).await;
            let mut room = rooms.take().expect("room");
            if room.number() == 1 {
                let mut zero = rooms.take().expect("room");
                assert!(zero.is_unspoilt());
                rooms.give_back(room, true).await;
                rooms.give_back(zero, true).await;
            } else {
                assert!(room.is_unspoilt());
                rooms.give_back(room, true).await;
            }
        }
        rooms.settle(WITHIN).await;
        assert_eq!(names(directory.path()), ["0", "1"]);
    }

    #[test]
    fn a_settled_room_shows_every_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let spoil: [&dyn Fn(&Room); 4] = [
            &|room| std::fs::write(room.work().join("file"), "").expect("room"),
            &|room| {
                std::fs::write(room.tmp.join("file"), "").expect("room");
                std::fs::remove_file(room.tmp.join("file")).expect("ours");
            },
            &|room| {
                let mode = std::fs::Permissions::from_mode(0o770);
                std::fs::set_permissions(room.directory(), mode).expect("ours");
            },
            &|room| {
                std::fs::rename(room.work(), room.directory().join("old")).expect("ours");
                std::os::unix::fs::symlink("old", room.work()).expect("room");
            },
        ];
        for (number, spoil) in (0..).zip(spoil) {
            let mut room =
                Room::make(directory.path().join(number.to_string()), number).expect("a room");
            assert!(room.is_unspoilt() && room.settled.is_none(), "it was made a moment ago");
            // As it will be when it is older.
            room.settled = room.changed();
            assert!(room.is_unspoilt() && room.settled.is_some());
            wait_for_a_step(directory.path(), &room);
            spoil(&room);
            assert_ne!(room.changed(), room.settled, "spoilt in way {number}");
            room.is_unspoilt();
            assert!(room.settled.is_none(), "it is looked at as a whole again");
        }
    }

    /// Waits until a change has another time than that of the room: the file system's clock goes
    /// in steps.
    fn wait_for_a_step(directory: &Path, room: &Room) {
        let deadline = entropy::now().mono.after(WITHIN);
        let last = room.settled.and_then(|times| times.into_iter().max()).expect("settled");
        loop {
            let probe = tempfile::tempdir_in(directory).expect("a directory");
            let seen = fs::statx(fs::CWD, probe.path(), AtFlags::empty(), StatxFlags::CTIME);
            let time = seen.expect("it is there").stx_ctime;
            if (time.tv_sec, time.tv_nsec) > last {
                return;
            }
            assert!(entropy::now().mono < deadline, "the clock stands still");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_an_earlier_life_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["0/work/a", "7", "gone-3/b"] {
            std::fs::create_dir_all(directory.path().join(name)).expect("room");
        }
        std::fs::write(directory.path().join("file"), "").expect("room");
        let rooms = Rooms::open(directory.path().to_owned()).expect("opened");
        let mut room = rooms.take().expect("room");
        assert!(room.number() == 0 && room.is_unspoilt());
        rooms.settle(WITHIN).await;
        assert_eq!(names(directory.path()), ["0"]);
    }
}
