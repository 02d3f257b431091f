//! The frames between the executor and its spawner.
//!
//! Pure bytes, no IO. Both ends are the same binary, so there is no version and no optional field.
//! Shape: length u32, kind u8, fields; integers little-endian; a text is its length u32 and its
//! bytes, a list its count u32 and its texts. Descriptors travel beside the first byte of a frame
//! (SCM_RIGHTS) in the order stdout, stderr, stdin where there is one.
//! Law: what is written reads back (tests below).

use std::io;

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
    },
    /// It could not be started.
    Failed {
        /// The system's number of the error; `ENOENT` where the program was not found.
        errno: i32,
    },
}

/// From the executor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Spawn {
        job: JobNumber,
        descriptors: u8,
        attempt: Vec<u8>,
        cwd: Vec<u8>,
        argv: Vec<Vec<u8>>,
        env: Vec<(Vec<u8>, Vec<u8>)>,
    },
    Kill {
        job: JobNumber,
        signal: i32,
    },
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
    writer = writer.u32(count(program.argv.len()));
    for argument in program.argv {
        writer = writer.text(argument.as_bytes());
    }
    writer = writer.u32(count(program.env.len()));
    for (name, value) in program.env {
        writer = writer.text(name.as_bytes()).text(value.as_bytes());
    }
    writer.finish()
}

/// The frame that sends a signal to a job's processes.
pub(super) fn kill(job: JobNumber, signal: i32) -> Vec<u8> {
    Writer::new(2).u64(job.0).i32(signal).finish()
}

/// The frame that tells how a job ended.
pub(super) fn ended(job: JobNumber, ending: Ending) -> Vec<u8> {
    match ending {
        Ending::Exited { status, cpu_us, memory_max, strays } => {
            let writer = Writer::new(3).u64(job.0).i32(status);
            writer.u64(cpu_us).u64(memory_max).u32(strays).finish()
        }
        Ending::Failed { errno } => Writer::new(4).u64(job.0).i32(errno).finish(),
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
        1 => Ok(Request::Spawn {
            job,
            descriptors: u8::try_from(reader.u32()?).map_err(|_| malformed())?,
            attempt: reader.text()?,
            cwd: reader.text()?,
            argv: reader.list(Reader::text)?,
            env: reader.list(|reader| Ok((reader.text()?, reader.text()?)))?,
        }),
        2 => Ok(Request::Kill { job, signal: reader.i32()? }),
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
        },
        4 => Ending::Failed { errno: reader.i32()? },
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
        let argv = ["sh".to_owned(), String::new()];
        let program = Program {
            argv: &argv,
            env: &[("A", "b")],
            cwd: std::path::Path::new("/"),
            attempt: "north-1.7",
        };
        let bytes = [spawn(JobNumber(9), 2, &program), kill(JobNumber(9), 15)].concat();
        let (first, used) = split(&bytes).expect("a whole frame");
        let expected = Request::Spawn {
            job: JobNumber(9),
            descriptors: 2,
            attempt: b"north-1.7".to_vec(),
            cwd: b"/".to_vec(),
            argv: vec![b"sh".to_vec(), vec![]],
            env: vec![(b"A".to_vec(), b"b".to_vec())],
        };
        assert_eq!(request(first).expect("a request"), expected);
        let (second, _) = split(&bytes[used..]).expect("a whole frame");
        assert_eq!(
            request(second).expect("a request"),
            Request::Kill { job: JobNumber(9), signal: 15 }
        );
        for cut in 0..used {
            assert!(split(&bytes[..cut]).is_none(), "no frame in {cut} bytes");
        }
        for ending in [
            Ending::Exited { status: 256, cpu_us: 1, memory_max: 2, strays: 3 },
            Ending::Failed { errno: 2 },
        ] {
            let bytes = ended(JobNumber(4), ending);
            let (frame, used) = split(&bytes).expect("a whole frame");
            assert_eq!(used, bytes.len());
            assert_eq!(event(frame).expect("an event"), Event { job: JobNumber(4), ending });
            assert!(event(&frame[..frame.len() - 1]).is_err());
        }
    }
}
