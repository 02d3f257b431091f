//! The connection to a broker, and finding one again when it goes away.
//!
//! Repeats nothing by itself: who uses it knows what may be asked twice. `--connect-timeout`
//! bounds the first contact only, up to its first answer; a broker that was there once, or to
//! which a job was sent, is waited for, up to [`limits::RECONNECT_MAX`], and its absence is told
//! on stderr alone.

use std::cell::Cell;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::{Method, Response};

use crate::cli::args::BrokerArgs;
use crate::cli::exit::Exit;
use crate::cli::report::{Failure, Reporter, chain};
use crate::proto::limits;
use crate::runtime::client::{self, Answer, Body, Client, ClientError};
use crate::runtime::endpoint::{Address, EndpointError};
use crate::runtime::search::Search;

/// A connection that can be made anew.
pub struct Link {
    places: Vec<Address>,
    first_wait: Duration,
    reporter: Reporter,
    client: Option<Client>,
    address: Option<Address>,
    /// The search for a broker since none answers; begins with the first use.
    search: Option<Search>,
    /// Whether a broker ever answered.
    met: bool,
    lost: Option<Lost>,
}

/// Since a broker went away: how long to pause before the next try.
struct Lost {
    pause: Duration,
}

impl Link {
    /// No connection yet.
    pub fn new(flags: &BrokerArgs, reporter: Reporter) -> Self {
        Self::to(flags.broker.clone(), flags.connect_timeout.duration(), reporter)
    }

    fn to(places: Vec<Address>, first_wait: Duration, reporter: Reporter) -> Self {
        let (client, address, search, lost) = (None, None, None, None);
        Self { places, first_wait, reporter, client, address, search, met: false, lost }
    }

    /// Another link to the same places, for what is asked meanwhile.
    pub fn twin(&self) -> Self {
        Self::to(self.places.clone(), self.first_wait, self.reporter)
    }

    /// The connection; made where there is none.
    ///
    /// # Errors
    /// No broker answered for too long.
    pub async fn client(&mut self) -> Result<&mut Client, Failure> {
        let client = self.take().await?;
        Ok(self.client.insert(client))
    }

    /// The connection, to be kept by the caller; made where there is none.
    ///
    /// # Errors
    /// No broker answered for too long.
    pub async fn take(&mut self) -> Result<Client, Failure> {
        match self.client.take_if(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => self.connect().await,
        }
    }

    async fn connect(&mut self) -> Result<Client, Failure> {
        if let Some(lost) = &mut self.lost {
            tokio::time::sleep(lost.pause).await;
            lost.pause = (lost.pause * 2).min(limits::CONNECT_PAUSE_MAX);
        }
        let found = self.search().connect().await;
        let (address, stream) = found.map_err(|error| self.given_up(error))?;
        self.address = Some(address.clone());
        Client::over(address, stream).await.map_err(Failure::from)
    }

    fn search(&mut self) -> &mut Search {
        let (places, wait) = (&self.places, self.first_wait);
        self.search.get_or_insert_with(|| Search::new(places, wait))
    }

    fn given_up(&self, error: EndpointError) -> Failure {
        let failure = Failure::from(error);
        let given_up = self.lost.is_some() && failure.exit == Exit::NoBroker;
        if given_up { Failure { exit: Exit::Unknown, ..failure } } else { failure }
    }

    /// Takes note that the broker went away; the next call to `client` waits for one.
    pub fn lose(&mut self, why: &str) {
        tracing::info!("the broker went away: {why}");
        self.client = None;
        if self.lost.is_none() {
            self.lost = Some(Lost { pause: limits::CONNECT_PAUSE_FIRST });
            self.search().again(limits::RECONNECT_MAX);
            self.address.iter().for_each(|address| self.reporter.away(address));
        }
    }

    /// The same after a question: there was nothing begun that must be waited for, so the first
    /// contact is given up when its time is over.
    ///
    /// # Errors
    /// No broker answered within `--connect-timeout`.
    pub fn lose_question(&mut self, error: &ClientError) -> Result<(), Failure> {
        match error {
            ClientError::Silent { address } if !self.met && self.lost.is_none() => {
                self.client = None;
                self.search().go_on(address).map_err(Failure::from)
            }
            _ => {
                self.lose(&chain(error));
                Ok(())
            }
        }
    }

    /// Takes note that the broker answers.
    pub fn answered(&mut self) {
        self.met = true;
        self.search = None;
        if let (Some(_), Some(address)) = (self.lost.take(), &self.address) {
            self.reporter.back(address);
        }
    }

    /// How long the broker has for the first answer on a connection that was just made; none
    /// where it has answered before.
    pub fn answer_within(&self) -> Option<Duration> {
        self.search.as_ref().map(Search::answer_within)
    }

    /// Takes note that a broker did not answer in that time, and tells whether to go on.
    pub fn silent(&mut self, error: ClientError) -> Asked {
        let ClientError::Silent { address } = &error else { return error.into() };
        self.client = None;
        let search = self.search();
        search.pass_over(address);
        match search.go_on(address) {
            Err(over) if self.lost.is_some() => Asked::Failed(self.given_up(over)),
            Ok(()) | Err(_) => Asked::Gone(error),
        }
    }

    /// Asks, and asks again whenever the broker went away meanwhile: for what may be done twice.
    ///
    /// # Errors
    /// No broker answered for too long, or it refused.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<String, Failure> {
        loop {
            match self.try_ask(method.clone(), path, body).await {
                Ok(line) => return Ok(line),
                Err(Asked::Gone(error)) => self.lose_question(&error)?,
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Submits a job again and again until it is acknowledged; `sent` tells whether a broker may
    /// know of it. Once it does, the broker is waited for even if it never answered.
    ///
    /// # Errors
    /// No broker answered for too long, or it refused.
    pub async fn submit(
        &mut self,
        path: &str,
        body: &str,
        sent: &Cell<bool>,
    ) -> Result<String, Failure> {
        loop {
            self.client().await?;
            sent.set(true);
            match self.try_ask(Method::POST, path, Some(body)).await {
                Ok(line) => return Ok(line),
                Err(Asked::Gone(error)) => self.lose(&chain(&error)),
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
    }

    async fn try_ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<String, Asked> {
        let body = body.map_or_else(Body::empty, |text| Body::json(text.to_owned()));
        let mut answer = self.begin(method, path, body).await?;
        let line = answer.next().await?;
        // Reading to the end leaves the connection free for the next request.
        while answer.next().await?.is_some() {}
        line.ok_or_else(|| {
            Asked::Failed(Failure::new(Exit::Protocol, "the broker's answer is empty"))
        })
    }

    /// Sends one request and gives its answer as lines.
    ///
    /// # Errors
    /// Whether the broker went away, so that it may be asked again, or the request failed.
    pub async fn begin(&mut self, method: Method, path: &str, body: Body) -> Result<Answer, Asked> {
        let (address, response) = self.request(method, path, body).await?;
        let response = client::unless_refused(response).await?;
        Ok(Answer::new(&address, response))
    }

    /// Sends one request and waits for the head of its answer, whatever its status.
    ///
    /// # Errors
    /// As for [`Link::begin`], but for refusals.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<(Address, Response<Incoming>), Asked> {
        let mut client = self.take().await.map_err(Asked::Failed)?;
        let address = client.address().clone();
        let within = self.answer_within();
        let response = tokio::select! {
            biased;
            response = client.request(method, path, body) => response?,
            error = silence(&address, within) => return Err(self.silent(error)),
        };
        self.client = Some(client);
        self.answered();
        Ok((address, response))
    }
}

/// Comes back when a broker did not answer in the time it has for that.
pub async fn silence(address: &Address, within: Option<Duration>) -> ClientError {
    match within {
        Some(within) => client::silence(address, within).await,
        None => std::future::pending().await,
    }
}

/// Why a request has no answer.
pub enum Asked {
    /// The broker went away.
    Gone(ClientError),
    /// It refused, or nobody could be asked.
    Failed(Failure),
}

impl From<ClientError> for Asked {
    fn from(error: ClientError) -> Self {
        if error.is_gone() { Self::Gone(error) } else { Self::Failed(error.into()) }
    }
}

/// Lines joined to one piece of a body.
pub fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> Bytes {
    let mut piece = String::new();
    for line in lines {
        piece.push_str(line);
        piece.push('\n');
    }
    piece.into()
}
