//! A session in JSON by hand: what a stranger writes who has only docs/protocol.md.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use super::http::connect;

/// Something to speak over: a socket, or TLS over one.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Random enough for ids: none of a test's is ever given twice.
pub fn fresh_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let random = RandomState::new().hash_one(now.expect("after 1970"));
    format!("{:016x}", random | 1)
}

#[derive(Default, Clone)]
struct Lane {
    grant: u64,
    counter: u64,
    last: Option<String>,
}

/// A connection, its outbox, and what has come.
pub struct Session {
    socket: WebSocket<Box<dyn Stream>>,
    waiting: VecDeque<Value>,
    /// The code of the close frame, once one has come; 1006 when the connection ended without.
    pub closed: Option<u16>,
    /// The outbox.
    pub sender: String,
    lanes: HashMap<String, Lane>,
    /// The `ready` update.
    pub ready: Value,
    refs: u64,
}

impl Session {
    /// Connects, without a word.
    pub fn connect(address: SocketAddr) -> Session {
        Session::over(Box::new(connect(address)), &format!("ws://{address}/v1/ws"))
    }

    /// Connects over this stream.
    pub fn over(stream: Box<dyn Stream>, url: &str) -> Session {
        let mut request = url.into_client_request().expect("a URL");
        let protocol = "tidings.v1.json".parse().expect("ascii");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let (socket, _) = match tungstenite::client(request, stream) {
            Ok(done) => done,
            Err(error) => panic!("no upgrade: {error}"),
        };
        Session {
            socket,
            waiting: VecDeque::new(),
            closed: None,
            sender: fresh_id(),
            lanes: HashMap::new(),
            ready: Value::Null,
            refs: 100,
        }
    }

    /// Connects and signs in.
    pub fn sign_in(address: SocketAddr, token: &str) -> Session {
        // As clients do: a balancer sends all of a user's connections to the same server.
        let user = token.strip_prefix("tac_").and_then(|t| {
            let first = URL_SAFE_NO_PAD.decode(t.get(..12)?).ok()?;
            Some(u64::from_be_bytes(first.get(..8)?.try_into().ok()?))
        });
        let query = user.map_or_else(String::new, |user| format!("?user={user:016x}"));
        let url = format!("ws://{address}/v1/ws{query}");
        let mut session = Session::over(Box::new(connect(address)), &url);
        session.auth(token);
        session.ready = session.until("ready");
        session
    }

    /// Says who it is.
    pub fn auth(&mut self, token: &str) {
        self.say(&json!({ "type": "auth", "token": token, "device": "by hand", "version": 1 }));
    }

    /// Sends a frame.
    pub fn say(&mut self, frame: &Value) {
        self.say_raw(&frame.to_string());
    }

    /// Sends a text, whatever it is. A connection that ended meanwhile tells so when read.
    pub fn say_raw(&mut self, text: &str) {
        _ = self.socket.send(Message::text(text));
    }

    /// Writes bytes past the WebSocket.
    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).expect("written");
        self.socket.get_mut().flush().expect("written");
    }

    fn read(&mut self) {
        match self.socket.read() {
            Ok(Message::Text(text)) => match serde_json::from_str(&text).expect("JSON") {
                Value::Array(many) => many.into_iter().for_each(|one| self.came(one)),
                one => self.came(one),
            },
            Ok(Message::Close(frame)) => {
                self.closed = Some(frame.map_or(1005, |f| f.code.into()));
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                panic!("nothing comes; unread: {:?}", self.waiting)
            }
            Err(_) => self.closed = self.closed.or(Some(1006)),
        }
    }

    /// Takes the first update that fits, leaving the others where they are.
    pub fn find(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut looked = 0;
        loop {
            while looked < self.waiting.len() {
                if fits(&self.waiting[looked]) {
                    return self.waiting.remove(looked).expect("just seen");
                }
                looked += 1;
            }
            if let Some(code) = self.closed {
                panic!(
                    "closed with {code} before {what}; unread: {:?}",
                    self.waiting
                );
            }
            self.read();
        }
    }

    /// Takes the first update of a type.
    pub fn until(&mut self, kind: &str) -> Value {
        self.find(kind, |update| update["type"] == kind)
    }

    /// Whether an update of a type has come, of those that were read.
    pub fn has(&self, kind: &str) -> bool {
        self.waiting.iter().any(|update| update["type"] == kind)
    }

    /// A message or change of members of a conversation: the next one not taken yet.
    pub fn event(&mut self, conversation: &str) -> Value {
        self.find("an event", |update| {
            (update["type"] == "message" || update["type"] == "members")
                && update["conversation"] == conversation
        })
    }

    /// Everything but the greeting that came before the answer to a ping.
    pub fn drain(&mut self) -> Vec<Value> {
        let answer = self.ask(json!({ "type": "ping" }));
        assert_eq!(answer["type"], "pong");
        let came = self.waiting.drain(..);
        came.filter(|update| update["type"] != "hello").collect()
    }

    /// Reads until the connection is closed; the code.
    pub fn until_closed(&mut self) -> u16 {
        while self.closed.is_none() {
            self.read();
        }
        self.closed.expect("just closed")
    }

    /// Keeps an update, and the grants that it tells. One that ended goes on being used: what it
    /// is answered is for the tests to see.
    fn came(&mut self, update: Value) {
        self.learn(&update);
        self.waiting.push_back(update);
    }

    fn learn(&mut self, update: &Value) {
        let conversation = update["conversation"].as_str().unwrap_or_default();
        let grant = match update["type"].as_str() {
            Some("sync_page") => update["grant"].as_u64(),
            Some("members") => {
                let changes = update["changes"].as_array().expect("changes");
                let own = changes.iter().find(|c| c["user"] == self.ready["user"]);
                own.map(|change| match change["role"].as_str() {
                    Some("member" | "admin" | "owner") => update["seq"].as_u64().unwrap_or(0),
                    _ => 0,
                })
            }
            _ => None,
        };
        let Some(grant @ 1..) = grant else { return };
        let lane = self.lanes.entry(conversation.to_owned()).or_default();
        if lane.grant != grant {
            *lane = Lane {
                grant,
                ..Lane::default()
            };
        }
    }

    /// Sends a command with a `ref` and takes the answer to it.
    pub fn ask(&mut self, mut command: Value) -> Value {
        self.refs += 1;
        let r#ref = self.refs;
        command["ref"] = json!(r#ref);
        self.say(&command);
        self.find("an answer", |update| update["ref"] == r#ref)
    }

    /// Syncs from these cursors: the pages and the end.
    pub fn sync(&mut self, cursors: &Value, page: u64) -> (Vec<Value>, Value) {
        let epoch = self.ready["epoch"].clone();
        self.say(&json!({ "type": "sync", "epoch": epoch, "cursors": cursors, "page": page }));
        let mut pages = Vec::new();
        loop {
            let update = self.find("sync", |u| {
                u["type"] == "sync_page" || u["type"] == "sync_done"
            });
            if update["type"] == "sync_done" {
                return (pages, update);
            }
            pages.push(update);
        }
    }

    /// The grant in a conversation; 0: none is known.
    pub fn grant(&self, conversation: &str) -> u64 {
        self.lanes.get(conversation).map_or(0, |lane| lane.grant)
    }

    /// The next numbered send of this outbox.
    pub fn number(&mut self, conversation: &str, kind: &str, body: Value) -> Value {
        let id = fresh_id();
        while self.grant(conversation) == 0 {
            assert_eq!(self.closed, None, "closed before a grant came");
            self.read();
        }
        let lane = self.lanes.entry(conversation.to_owned()).or_default();
        lane.counter += 1;
        let mut send = json!({
            "type": "send", "conversation": conversation, "sender": self.sender, "grant": lane.grant,
            "counter": lane.counter, "id": id, "kind": kind, "body": body,
        });
        if let Some(last) = lane.last.replace(id) {
            send["previous"] = json!(last);
        }
        send
    }

    /// Sends a text and takes its ack.
    pub fn send(&mut self, conversation: &str, text: &str) -> Value {
        let send = self.number(conversation, "text", json!(text));
        let ack = self.ask(send);
        assert_eq!(
            (&ack["type"], &ack["status"]),
            (&json!("ack"), &json!("sent")),
            "{ack}"
        );
        ack
    }
}
