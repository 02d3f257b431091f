//! The frames between the executor and its spawner.
//!
//! Pure bytes, no IO. Both ends are the same binary, so there is no version and no optional field.
//! Shape: length u32, kind u8, fields; integers little-endian; a text is its length u32 and its
//! bytes, a list its count u32 and its texts. Descriptors travel beside the first byte of a frame
//! (SCM_RIGHTS) in the order stdout, stderr, stdin where there is one.
//! Law: what is written reads back (tests below).

use std::io;

use super::clone::Step;
use crate::proto::time::Monotonic;

/// A job's number between an executor and its spawner; later jobs have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobNumber(pub u64);

/// How a job's program ended. No process of the job is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ran.
    Exited {
        /// The wait status as the kernel has it.
        status: i32,
        /// CPU time of the main process and of the children it waited for, in microseconds.
        cpu_us: u64,
        /// The largest resident set of those, in bytes.
        memory_max: u64,
        /// Processes that the main process left behind and that were killed.
        strays: u32,
        /// Whether the kernel killed a process of the job as its memory was used up.
        out_of_memory: bool,
        /// Whether it was killed as its lease was over.
        lapsed: bool,
        /// What of its isolation it really had.
        held: Held,
    },
    /// It could not be started.
    Failed {
        /// What it failed at.
        step: Step,
        /// The system's number of the error; `ENOENT` where the program was not found.
        errno: i32,
    },
}

/// Whether a job had what its executor offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It had it.
    Yes,
    /// It was not meant to have it.
    Off,
    /// The system refused it at its start.
    Refused,
}

/// What of its isolation a job really had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// A cgroup of its own.
    pub cgroup: Kept,
    /// Landlock's rules.
    pub landlock: Kept,
}

impl Kept {
    const ALL: [Self; 3] = [Self::Yes, Self::Off, Self::Refused];

    fn read(number: u32) -> io::Result<Self> {
        Self::ALL.get(number as usize).copied().ok_or_else(malformed)
    }
}

/// From the executor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Spawn { job: JobNumber, order: Order },
    Kill { job: JobNumber, signal: i32 },
    Renew { job: JobNumber, until: Monotonic },
}

/// One program to start, as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) descriptors: u8,
    pub(super) attempt: Vec<u8>,
    pub(super) cwd: Vec<u8>,
    pub(super) room: Option<(u32, Vec<u8>)>,
    pub(super) memory: Option<u64>,
    pub(super) lease: Option<Monotonic>,
    pub(super) argv: Vec<Vec<u8>>,
    pub(super) env: Vec<(Vec<u8>, Vec<u8>)>,
}

/// From the spawner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) job: JobNumber,
    pub(super) ending: Ending,
}

/// A frame that is none; between two ends of one binary this is a bug.
fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed frame between executor and spawner")
}

/// Writes one frame.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn i32(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(mut self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("limits keep a text far below 4 GiB");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).expect("limits keep a frame below 4 GiB");
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| malformed())
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> io::Result<i32> {
        self.array().map(i32::from_le_bytes)
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let length = self.u32()? as usize;
        self.take(length).map(<[u8]>::to_vec)
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> io::Result<T>) -> io::Result<Vec<T>> {
        let count = self.u32()?;
        (0..count).map(|_| read(self)).collect()
    }
}

/// The frame that starts a program.
pub(super) fn spawn(job: JobNumber, descriptors: u8, program: &super::Program<'_>) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let count = |n: usize| u32::try_from(n).expect("limits keep lists far below 2^32");
    let mut writer = Writer::new(1).u64(job.0).u32(u32::from(descriptors));
    writer = writer.text(program.attempt.as_bytes());
    writer = writer.text(program.cwd.as_os_str().as_bytes());
    writer = match program.room {
        Some(room) => writer.u32(1).u32(room.number).text(room.directory.as_os_str().as_bytes()),
        None => writer.u32(0),
    };
    writer = writer.u64(program.memory.unwrap_or(u64::MAX));
    writer = writer.u64(program.lease.map_or(u64::MAX, |until| until.0));
    writer = writer.u32(count(program.argv.len()));
    for argument in program.argv {
        writer = writer.text(argument.bytes());
    }
    writer = writer.u32(count(program.env.len()));
    for (name, value) in program.env {
        writer = writer.text(name.as_bytes()).text(value);
    }
    writer.finish()
}

/// The frame that sends a signal to a job's processes.
pub(super) fn kill(job: JobNumber, signal: i32) -> Vec<u8> {
    Writer::new(2).u64(job.0).i32(signal).finish()
}

/// The frame that puts the end of a job's lease off.
pub(super) fn renew(job: JobNumber, until: Monotonic) -> Vec<u8> {
    Writer::new(5).u64(job.0).u64(until.0).finish()
}

/// The frame that tells how a job ended.
pub(super) fn ended(job: JobNumber, ending: Ending) -> Vec<u8> {
    match ending {
        Ending::Exited { status, cpu_us, memory_max, strays, out_of_memory, lapsed, held } => {
            let writer = Writer::new(3).u64(job.0).i32(status);
            let writer = writer.u64(cpu_us).u64(memory_max).u32(strays);
            let writer = writer.u32(u32::from(out_of_memory)).u32(u32::from(lapsed));
            writer.u32(held.cgroup as u32).u32(held.landlock as u32).finish()
        }
        Ending::Failed { step, errno } => {
            Writer::new(4).u64(job.0).i32(step.number()).i32(errno).finish()
        }
    }
}

/// Cuts the first whole frame off the front of `bytes`.
pub(super) fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*head) as usize;
    Some((rest.get(..length)?, 4 + length))
}

/// Reads a frame of the executor.
pub(super) fn request(frame: &[u8]) -> io::Result<Request> {
    let mut reader = Reader(frame);
    let kind = reader.array::<1>()?[0];
    let job = JobNumber(reader.u64()?);
    match kind {
        1 => {
            let order = Order {
                descriptors: u8::try_from(reader.u32()?).map_err(|_| malformed())?,
                attempt: reader.text()?,
                cwd: reader.text()?,
                room: match reader.u32()? {
                    0 => None,
                    _ => Some((reader.u32()?, reader.text()?)),
                },
                memory: Some(reader.u64()?).filter(|bytes| *bytes != u64::MAX),
                lease: Some(reader.u64()?).filter(|until| *until != u64::MAX).map(Monotonic),
                argv: reader.list(Reader::text)?,
                env: reader.list(|reader| Ok((reader.text()?, reader.text()?)))?,
            };
            Ok(Request::Spawn { job, order })
        }
        2 => Ok(Request::Kill { job, signal: reader.i32()? }),
        5 => Ok(Request::Renew { job, until: Monotonic(reader.u64()?) }),
        _ => Err(malformed()),
    }
}

/// Reads a frame of the spawner.
pub(super) fn event(frame: &[u8]) -> io::Result<Event> {
    let mut reader = Reader(frame);
    let kind = reader.array::<1>()?[0];
    let job = JobNumber(reader.u64()?);
    let ending = match kind {
        3 => Ending::Exited {
            status: reader.i32()?,
            cpu_us: reader.u64()?,
            memory_max: reader.u64()?,
            strays: reader.u32()?,
            out_of_memory: reader.u32()? != 0,
            lapsed: reader.u32()? != 0,
            held: Held { cgroup: Kept::read(reader.u32()?)?, landlock: Kept::read(reader.u32()?)? },
        },
        4 => Ending::Failed { step: Step::from_number(reader.i32()?), errno: reader.i32()? },
        _ => return Err(malformed()),
    };
    Ok(Event { job, ending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spawner::Program;

    #[test]
    fn frames_read_back_and_cut_at_their_ends() {
        let argv = ["sh".into(), "".into()];
        let program = Program {
            argv: &argv,
            env: &[("A", b"b")],
            cwd: std::path::Path::new("/"),
            attempt: "north-1.7",
            room: Some(super::super::Room { number: 3, directory: std::path::Path::new("/j/3") }),
            memory: Some(1 << 30),
            lease: Some(Monotonic(5)),
        };
        let renewed = renew(JobNumber(9), Monotonic(6));
        let bytes = [spawn(JobNumber(9), 2, &program), kill(JobNumber(9), 15), renewed].concat();
        let (first, used) = split(&bytes).expect("a whole frame");
        let order = Order {
            descriptors: 2,
            attempt: b"north-1.7".to_vec(),
            cwd: b"/".to_vec(),
            room: Some((3, b"/j/3".to_vec())),
            memory: Some(1 << 30),
            lease: Some(Monotonic(5)),
            argv: vec![b"sh".to_vec(), vec![]],
            env: vec![(b"A".to_vec(), b"b".to_vec())],
        };
        let expected = Request::Spawn { job: JobNumber(9), order };
        assert_eq!(request(first).expect("a request"), expected);
        let (second, length) = split(&bytes[used..]).expect("a whole frame");
        assert_eq!(
            request(second).expect("a request"),
            Request::Kill { job: JobNumber(9), signal: 15 }
        );
        let (third, _) = split(&bytes[used + length..]).expect("a whole frame");
        let expected = Request::Renew { job: JobNumber(9), until: Monotonic(6) };
        assert_eq!(request(third).expect("a request"), expected);
        for cut in 0..used {
            assert!(split(&bytes[..cut]).is_none(), "no frame in {cut} bytes");
        }
        for ending in [
            Ending::Exited {
                status: 256,
                cpu_us: 1,
                memory_max: 2,
                strays: 3,
                out_of_memory: true,
                lapsed: true,
                held: Held { cgroup: Kept::Refused, landlock: Kept::Yes },
            },
            Ending::Failed { step: Step::Directory, errno: 2 },
        ] {
            let bytes = ended(JobNumber(4), ending);
            let (frame, used) = split(&bytes).expect("a whole frame");
            assert_eq!(used, bytes.len());
            assert_eq!(event(frame).expect("an event"), Event { job: JobNumber(4), ending });
            assert!(event(&frame[..frame.len() - 1]).is_err());
        }
    }
}
