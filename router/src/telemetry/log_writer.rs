//! Log records on their way to a reader who may not read: whoever logs never waits for that.
//!
//! A thread of its own writes them. The queue before it is bounded: once it is full, records are lost until the thread
//! has written all that is in it, so that what is missing is missing in one place, and said there.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Bytes of records that wait to be written: seconds of a busy access log.
const ROOM: usize = 4 << 20;
/// How long the thread lets records gather once it has written all. Whoever logs must wake it only when it has waited
/// longer: to wake it for each record of a busy access log cost more than the record.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes of records that are written at once. A pipe keeps so many together: its other writers do not cut our lines.
const PIECE: usize = 4096;

/// Records lost by this process, for `/metrics`.
static LOST: AtomicU64 = AtomicU64::new(0);

pub(super) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// Where records go; clones share one thread. A `write` takes a whole record, and never waits or fails.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    room: usize,
    piece: usize,
    /// There is something to write.
    added: Condvar,
    /// Everything has been written.
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// The thread is at records that it has taken out.
    writing: bool,
    /// There was no room, and the queue has not been emptied since.
    full: bool,
    /// Records lost since that was last said.
    lost: u64,
}

impl LogWriter {
    /// Starts the thread that writes to `sink`. Once records were lost and writing works again, it calls `tell` with
    /// their number.
    pub fn start(sink: impl Write + Send + 'static, tell: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        Self::with_bounds(ROOM, PIECE, sink, tell)
    }

    fn with_bounds(
        room: usize,
        piece: usize,
        sink: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, added, emptied) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { queue, room, piece, added, emptied });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.write(sink, tell))?;
        Ok(Self(shared))
    }

    /// Adds a record that must not be lost for want of room. For the process's last words.
    pub fn insist(&self, record: &[u8]) {
        self.0.queue.lock().add(record);
        self.0.added.notify_one();
    }

    /// Waits until every record has been written, for `patience` at most.
    pub fn finish(&self, patience: Duration) {
        let mut queue = self.0.queue.lock();
        let unwritten = |queue: &mut Queue| queue.writing || !queue.records.is_empty();
        self.0.emptied.wait_while_for(&mut queue, unwritten, patience);
    }
}

impl Write for LogWriter {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue.lock();
        queue.full |= queue.bytes + record.len() > self.0.room;
        if queue.full {
            queue.lose(1);
        } else {
            queue.add(record);
            self.0.added.notify_one();
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn add(&mut self, record: &[u8]) {
        self.bytes += record.len();
        self.records.push_back(record.into());
    }

    fn lose(&mut self, records: u64) {
        self.lost += records;
        LOST.fetch_add(records, Relaxed);
    }
}

impl Shared {
    fn write(&self, mut sink: impl Write, tell: impl Fn(u64)) {
        loop {
            let (piece, records) = self.next();
            let written = sink.write_all(&piece).and_then(|()| sink.flush());
            let lost = self.wrote(records, written.is_ok());
            if lost > 0 {
                tell(lost);
            }
        }
    }

    /// The next records in one piece, and how many they are.
    fn next(&self) -> (Vec<u8>, u64) {
        let (mut piece, mut records) = (Vec::new(), 0);
        let mut queue = self.queue.lock();
        loop {
            while let Some(record) = queue.records.front()
                && (records == 0 || piece.len() + record.len() <= self.piece)
            {
                piece.extend_from_slice(record);
                queue.records.pop_front();
                records += 1;
            }
            if records > 0 {
                queue.bytes -= piece.len();
                queue.writing = true;
                return (piece, records);
            }
            queue.writing = false;
            self.emptied.notify_all();
            MutexGuard::unlocked(&mut queue, || thread::sleep(GATHER));
            if queue.records.is_empty() {
                self.added.wait(&mut queue);
            }
        }
    }

    /// How many records were lost, if this is the time to say it: the next record goes where they are missing.
    fn wrote(&self, records: u64, successfully: bool) -> u64 {
        let mut queue = self.queue.lock();
        if !successfully {
            queue.lose(records);
        }
        if !queue.records.is_empty() {
            return 0;
        }
        queue.full = false;
        // A disk that is full would take no word of it either.
        if successfully { std::mem::take(&mut queue.lost) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Takes a record whenever it is allowed to, which may fail.
    struct Gate {
        allowed: Receiver<io::Result<()>>,
        records: Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, record: &[u8]) -> io::Result<usize> {
            self.allowed.recv().map_err(io::Error::other)??;
            self.records.send(String::from_utf8_lossy(record).into_owned()).map_err(io::Error::other)?;
            Ok(record.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Setting {
        writer: LogWriter,
        allow: Sender<io::Result<()>>,
        records: Receiver<String>,
        told: Receiver<u64>,
    }

    /// Each record is a piece of its own, unless `piece` has more bytes.
    fn setting(room: usize, piece: usize) -> Setting {
        let ((allow, allowed), (sender, records), (tell, told)) = (channel(), channel(), channel());
        let gate = Gate { allowed, records: sender };
        let writer = LogWriter::with_bounds(room, piece, gate, move |lost| tell.send(lost).unwrap()).unwrap();
        Setting { writer, allow, records, told }
    }

    impl Setting {
        fn log(&self, record: &str) {
            assert_eq!(self.writer.clone().write(record.as_bytes()).unwrap(), record.len());
        }

        /// Waits until the thread holds a record and cannot go on.
        fn wait_stuck(&self) {
            while !self.writer.0.queue.lock().writing {
                thread::yield_now();
            }
        }

        fn written(&self) -> String {
            self.records.recv_timeout(PATIENCE).unwrap()
        }
    }

    #[test]
    fn what_has_no_room_is_lost_in_one_place_and_said() {
        let setting = setting(4, 1);
        let before = lost();
        setting.log("0");
        setting.wait_stuck();
        for record in ["1", "23", "4567", "8", "9"] {
            setting.log(record);
        }
        for expected in ["0", "1", "23"] {
            setting.allow.send(Ok(())).unwrap();
            assert_eq!(setting.written(), expected);
        }
        assert_eq!(setting.told.recv_timeout(PATIENCE), Ok(3));
        assert!(lost() >= before + 3);
        setting.log("a");
        setting.allow.send(Ok(())).unwrap();
        assert_eq!(setting.written(), "a");
        setting.writer.finish(PATIENCE);
        assert!(setting.told.try_recv().is_err(), "said once");
    }

    #[test]
    fn what_cannot_be_written_is_said_once_writing_works_again() {
        let setting = setting(100, 1);
        for record in ["1", "2", "3"] {
            setting.log(record);
            setting
                .allow
                .send(if record == "3" { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) })
                .unwrap();
        }
        assert_eq!(setting.written(), "3");
        assert_eq!(setting.told.recv_timeout(PATIENCE), Ok(2));
    }

    #[test]
    fn last_words_find_room_and_are_waited_for_no_longer_than_said() {
        let setting = setting(1, 1);
        setting.log("1");
        setting.wait_stuck();
        setting.log("2");
        setting.log("3");
        setting.writer.insist(b"the end");
        setting.writer.finish(Duration::from_millis(1));
        assert!(setting.records.try_recv().is_err());
        for expected in ["1", "2", "the end"] {
            setting.allow.send(Ok(())).unwrap();
            assert_eq!(setting.written(), expected);
        }
        setting.writer.finish(PATIENCE);
    }

    #[test]
    fn what_has_gathered_is_written_in_pieces() {
        let setting = setting(100, 4);
        setting.log("0");
        setting.wait_stuck();
        for record in ["12", "34", "567", "8"] {
            setting.log(record);
        }
        setting.allow.send(Ok(())).unwrap();
        assert_eq!(setting.written(), "0");
        setting.allow.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        setting.allow.send(Ok(())).unwrap();
        assert_eq!(setting.written(), "5678");
        assert_eq!(setting.told.recv_timeout(PATIENCE), Ok(2));
        setting.writer.finish(PATIENCE);
    }
}
