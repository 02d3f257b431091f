//! Large contents: broken off and gone on with, twice at a time, larger than memory may be.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use ucp::proto::id::Digest;
use ucp::proto::limits;
use ucp::proto::rng::Rng;
use ucp::runtime::endpoint::Address;
use ucp::runtime::transfer::{TransferError, download, upload};

use crate::common::{Daemon, TestEnv, wait_until};
use crate::peer::{Http, read_answer};

fn content(size: u64) -> Vec<u8> {
    let mut rng = Rng::from_seed(size);
    (0..size).map(|_| rng.next_u64().to_le_bytes()[0]).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime").block_on(work)
}

fn tcp_broker(env: &TestEnv) -> (Daemon, Address) {
    let broker = env.broker_with(&["--listen", "http://127.0.0.1:0"]);
    let address = broker.ready["listen"][1].as_str().expect("an address");
    let address = address.parse().expect("an address");
    (broker, address)
}

/// Stands between a client and a broker and cuts each of the first connections that carry more
/// than a head after as many bytes as chance says, in both directions together.
fn cutting(broker: &Address, seed: u64, cuts: u64, most: u64) -> (Address, Arc<AtomicU64>) {
    let Address::Http { host, port } = broker.clone() else { panic!("TCP is cut here") };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = listener.local_addr().expect("an address").port();
    let cut = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&cut);
    std::thread::spawn(move || {
        let mut rng = Rng::from_seed(seed);
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect((host.as_str(), port)) else { continue };
            let left = match count.load(Ordering::SeqCst) < cuts {
                true => 4096 + rng.below(most),
                false => u64::MAX,
            };
            let left = Arc::new(AtomicU64::new(left));
            for (mut from, mut to) in
                [(&client, &server), (&server, &client)].map(|(a, b)| (handle(a), handle(b)))
            {
                let (left, count) = (Arc::clone(&left), Arc::clone(&count));
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 8192];
                    while let Ok(size @ 1..) = from.read(&mut buffer) {
                        let before = left.fetch_sub(size as u64, Ordering::SeqCst);
                        if before < size as u64 {
                            left.store(0, Ordering::SeqCst);
                            count.fetch_add(1, Ordering::SeqCst);
                            let _ = from.shutdown(Shutdown::Both);
                            break;
                        }
                        if to.write_all(&buffer[..size]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    (Address::Http { host: "127.0.0.1".into(), port: own }, cut)
}

fn handle(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a second handle")
}

fn offset(http: &Http, digest: Digest) -> Option<u64> {
    let head = http.ask("HEAD", &format!("/v1/blobs/{digest}"), "", b"").head;
    let line = head.lines().find_map(|line| line.strip_prefix("upload-offset: "))?;
    Some(line.trim().parse().expect("a number"))
}

/// Sends the beginning of a blob and goes away, and waits until the broker has noticed.
fn break_off(http: &Http, digest: Digest, whole: &[u8], at: usize) -> u64 {
    let mut stream = http.connect();
    let head = format!(
        "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        whole.len()
    );
    stream.write_all(head.as_bytes()).expect("the broker reads");
    stream.write_all(&whole[..at]).expect("the broker reads");
    drop(stream);
    wait_until("the beginning is kept", || offset(http, digest))
}

#[test]
fn a35_a_blob_that_broke_off_goes_on_where_it_stood() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let whole = content(5_000_000);
    let digest = Digest::of(&whole);
    let path = format!("/v1/blobs/{digest}");
    let held = break_off(&http, digest, &whole, 3_000_000);
    assert!((1..=3_000_000).contains(&held), "{held}");

    broker.kill();
    let _broker = env.broker();
    assert_eq!(offset(&http, digest), Some(held), "a restart changes nothing");
    let go_on = |from: usize| {
        let mut stream = http.connect();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\
             content-range: bytes {from}-{}/{}\r\n\r\n",
            whole.len() - from,
            whole.len() - 1,
            whole.len()
        );
        stream.write_all(head.as_bytes()).expect("the broker reads");
        let _ = stream.write_all(&whole[from..]);
        read_answer(stream)
    };
    let held = usize::try_from(held).expect("it fits");
    let elsewhere = go_on(held - 1);
    assert_eq!((elsewhere.status, &elsewhere.json()["code"]), (409, &json!("wrong-offset")));
    assert!(elsewhere.head.contains(&format!("upload-offset: {held}\r\n")), "{}", elsewhere.head);
    assert_eq!(elsewhere.json()["retryable"], true);
    assert_eq!(go_on(held).status, 201);
    assert!(http.get(&path).body == whole);
    assert_eq!(offset(&http, digest), None);
    let check = env.path("state/ucp/broker/blobs/tmp").read_dir().expect("there").count();
    assert_eq!(check, 0, "nothing is left of it");
}

#[test]
fn a_range_of_a_blob_is_given() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let whole = content(300_000);
    let digest = Digest::of(&whole);
    let path = format!("/v1/blobs/{digest}");
    assert_eq!(http.ask("PUT", &path, "", &whole).status, 201);
    let ask = |range: &str| {
        let mut stream = http.connect();
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nrange: {range}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the broker reads");
        read_answer(stream)
    };
    for (range, status, from, to) in [
        ("bytes=0-", 206, 0, 300_000),
        ("bytes=7-", 206, 7, 300_000),
        ("bytes=7-9", 206, 7, 10),
        ("bytes=299999-400000", 206, 299_999, 300_000),
        ("bytes=-5", 200, 0, 300_000),
        ("lines=1-2", 200, 0, 300_000),
    ] {
        let answer = ask(range);
        assert_eq!((answer.status, answer.body.len()), (status, to - from), "{range}");
        assert!(answer.body == whole[from..to], "{range}");
        assert!(answer.head.contains(&format!("etag: \"{digest}\"")), "{}", answer.head);
        let told = format!("content-range: bytes {from}-{}/300000", to - 1);
        assert_eq!(answer.head.contains(&told), status == 206, "{}", answer.head);
    }
    let beyond = ask("bytes=300000-");
    assert_eq!((beyond.status, &beyond.json()["code"]), (416, &json!("no-such-range")));
    assert!(beyond.head.contains("content-range: bytes */300000"), "{}", beyond.head);
}

#[test]
fn a_transfer_survives_every_cut_of_its_connections() {
    let env = TestEnv::new();
    let (_broker, address) = tcp_broker(&env);
    let path = env.path("content");
    for seed in 1..=4 {
        let whole = content(4_000_000 + seed);
        std::fs::write(&path, &whole).expect("written");
        let digest = Digest::of(&whole);
        let (cutter, cuts) = cutting(&address, seed, 6, 2_500_000);
        run(upload(&cutter, &path, digest)).expect("it arrives");
        let mut got = tempfile::tempfile().expect("a file");
        let (cutter, more) = cutting(&address, seed, 6, 2_500_000);
        let size = run(download(&cutter, digest, &mut got)).expect("it arrives");
        assert_eq!(size, whole.len() as u64);
        let mut bytes = vec![];
        got.rewind().expect("rewound");
        got.read_to_end(&mut bytes).expect("read");
        assert!(bytes == whole, "seed {seed}");
        let cuts = (cuts.load(Ordering::SeqCst), more.load(Ordering::SeqCst));
        assert!(cuts.0 > 0 && cuts.1 > 0, "seed {seed} cut nothing: {cuts:?}");
    }
    assert_eq!(Http(env.socket()).get("/healthz").status, 200);
}

#[test]
fn a_transfer_goes_on_after_a_restart_of_the_broker() {
    let env = TestEnv::new();
    let broker = env.broker();
    let http = Http(env.socket());
    let whole = content(3_000_000);
    let digest = Digest::of(&whole);
    let held = break_off(&http, digest, &whole, 2_500_000);
    assert!(held > 0);
    broker.kill();
    let path = env.path("content");
    std::fs::write(&path, &whole).expect("written");
    let address = Address::Unix(env.socket());
    let gone = run(upload(&address, &path, digest)).expect_err("nobody is there");
    assert!(gone.is_retryable(), "{gone}");
    let _broker = env.broker();
    run(upload(&address, &path, digest)).expect("it goes on");
    run(upload(&address, &path, digest)).expect("it is there");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&whole[..1_000_000]).expect("an earlier call came so far");
    assert_eq!(run(download(&address, digest, &mut file)).expect("it goes on"), 3_000_000);
    assert_eq!(run(download(&address, digest, &mut file)).expect("all is here"), 3_000_000);
}

#[test]
fn content_that_is_not_what_it_is_said_to_be_is_refused() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let address = Address::Unix(env.socket());
    let http = Http(env.socket());
    let whole = content(2_000_000);
    let digest = Digest::of(&whole);
    let path = env.path("content");
    let mut other = whole.clone();
    other[1_999_999] ^= 1;
    std::fs::write(&path, &other).expect("written");
    let error = run(upload(&address, &path, digest)).expect_err("it changed");
    assert!(matches!(error, TransferError::Content(_)) && !error.is_retryable(), "{error}");
    assert_eq!(offset(&http, digest), None, "nothing is kept of it");

    // A beginning that somebody else sent wrongly costs time, and nothing else.
    let mut wrong = whole.clone();
    wrong[0] ^= 1;
    break_off(&http, digest, &wrong, 1_900_000);
    std::fs::write(&path, &whole).expect("written");
    run(upload(&address, &path, digest)).expect("it is sent whole");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"of something else").expect("written");
    assert_eq!(run(download(&address, digest, &mut file)).expect("it is got whole"), 2_000_000);
    let absent = run(download(&address, Digest::of(b"absent"), &mut file)).expect_err("no blob");
    assert!(!absent.is_retryable(), "{absent}");
    let missing =
        run(upload(&address, Path::new("/absent"), Digest::of(b"y"))).expect_err("no file");
    assert!(matches!(missing, TransferError::File { .. }), "{missing}");
}

#[test]
fn many_send_one_blob_at_one_time() {
    let env = TestEnv::new();
    let (_broker, tcp) = tcp_broker(&env);
    let whole = content(6_000_000);
    let digest = Digest::of(&whole);
    let path = env.path("content");
    std::fs::write(&path, &whole).expect("written");
    std::thread::scope(|scope| {
        for address in [tcp.clone(), Address::Unix(env.socket()), tcp, Address::Unix(env.socket())]
        {
            let path = &path;
            scope.spawn(move || run(upload(&address, path, digest)).expect("it arrives"));
        }
    });
    assert!(Http(env.socket()).get(&format!("/v1/blobs/{digest}")).body == whole);
    assert_eq!(env.path("state/ucp/broker/blobs/tmp").read_dir().expect("there").count(), 0);
}

fn peak_memory(broker: &Daemon) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().strip_suffix(" kB").expect("kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn a35_a_body_of_a_gigabyte_passes_through_little_memory() {
    const SIZE: u64 = 1 << 30;
    let env = TestEnv::new();
    let broker = env.broker();
    let address = Address::Unix(env.socket());
    let path = env.path("content");
    let file = File::options().create(true).write(true).truncate(true).open(&path).expect("a file");
    file.set_len(SIZE).expect("a hole");
    file.write_all_at(b"at the end", SIZE - 10).expect("written");
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(&path).expect("readable")).expect("read");
    let digest = Digest(*hasher.finalize().as_bytes());
    let before = peak_memory(&broker);
    run(upload(&address, &path, digest)).expect("it arrives");
    let mut got = File::options().read(true).write(true).open(&path).expect("opened");
    got.set_len(SIZE / 2).expect("half of it is here");
    assert_eq!(run(download(&address, digest, &mut got)).expect("it comes back"), SIZE);
    let more = peak_memory(&broker) - before;
    assert!(more < 48 << 20, "the broker took {more} bytes more");
}

#[test]
fn a35_what_is_too_long_is_refused_before_it_is_read() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let digest = Digest::of(b"x");
    let ask = |head: String| {
        let mut stream = http.connect();
        stream.write_all(head.as_bytes()).expect("the broker reads");
        read_answer(stream)
    };
    let long = limits::BLOB_BYTES_MAX + 1;
    let put = format!("PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    let line = limits::LINE_BYTES_MAX + 1;
    let heads = [
        format!("{put}content-length: {long}\r\n\r\n"),
        format!("{put}content-range: bytes 1-{}/{long}\r\n\r\n", long - 1),
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {line}\r\n\r\n"
        ),
    ];
    for head in heads {
        let answer = ask(head);
        let said: Value = answer.json();
        assert_eq!((answer.status, &said["code"]), (413, &json!("too-large")), "{said}");
        let limit = said["detail"].as_str().expect("words");
        assert!(limit.contains(&(long - 1).to_string()) || limit.contains(&(line - 1).to_string()));
    }
    for range in ["bytes 5-2/9", "bytes 0-8/10", "lines 1-2/3", "bytes 1-9/10"] {
        let answer = ask(format!("{put}content-length: 3\r\ncontent-range: {range}\r\n\r\nabc"));
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad-range")), "{range}");
    }
}

#[test]
fn a35_a_body_that_stays_away_is_given_up() {
    let env = TestEnv::new();
    let _broker = env.broker();
    let http = Http(env.socket());
    let mut stream = http.connect();
    let head = "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                connection: close\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).expect("the broker reads");
    let answer = read_answer(stream);
    assert_eq!((answer.status, &answer.json()["code"]), (408, &json!("body-idle")));
}
