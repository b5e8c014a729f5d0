//! The way to a collector that is slow, busy or of another opinion: a receiver
//! that answers as the test wants.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use leaf_tests::agent::{AgentProcess, Finished};
use leaf_tests::ledger::Line;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the receiver does with the next request of log records; then it takes all.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Fail(Code),
    RejectOne,
    After(Duration),
}

/// Takes spans and metrics; log records as it is told.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    taken: Arc<Mutex<usize>>,
    /// When the agent has made the records that were taken, in the order in which they came.
    observed: Arc<Mutex<Vec<u64>>>,
}

impl Receiver {
    /// Listens until the process ends.
    fn start(answers: &[Answer]) -> Result<(Self, String)> {
        let receiver = Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), ..Self::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::bind(([127, 0, 0, 1], 0).into())?
        };
        let endpoint = format!("http://{}", incoming.local_addr()?);
        let service = receiver.clone();
        std::thread::spawn(move || {
            let server = Server::builder()
                .add_service(LogsServiceServer::new(service.clone()))
                .add_service(TraceServiceServer::new(service.clone()))
                .add_service(MetricsServiceServer::new(service));
            runtime.block_on(server.serve_with_incoming(incoming))
        });
        Ok((receiver, endpoint))
    }

    fn observed(&self) -> Vec<u64> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn taken(&self) -> usize {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let scopes = request.into_inner().resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        let observed: Vec<u64> =
            scopes.flat_map(|scope| scope.log_records).map(|record| record.observed_time_unix_nano).collect();
        let records = observed.len();
        let answer = self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut rejected = 0;
        match answer {
            Some(Answer::Fail(code)) => return Err(Status::new(code, "as the test wants")),
            Some(Answer::After(time)) => tokio::time::sleep(time).await,
            Some(Answer::RejectOne) => rejected = 1,
            None => {}
        }
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) += records - rejected;
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).extend(observed);
        let partial_success = (rejected > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: 1,
            error_message: "one record is too old".into(),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Runs an agent against a receiver while some processes come and go.
fn run(answers: &[Answer], env: &[(&str, &str)]) -> Result<(Receiver, Finished)> {
    let (receiver, endpoint) = Receiver::start(answers)?;
    let mut all = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("LEAF_BATCH_MAX_AGE", "20ms"),
        ("LEAF_OTLP_RETRY_INITIAL", "20ms"),
        ("LEAF_ROOMS_PROCESS_POLL_INTERVAL", "20ms"),
    ];
    all.extend_from_slice(env);
    let mut agent = AgentProcess::start(&["run", "--probes", "process"], &all)?;
    agent.wait_for_stderr("process: ", PATIENCE)?;
    for _ in 0..10 {
        assert!(Command::new("/bin/sleep").arg("0.05").status()?.success());
    }
    Ok((receiver, agent.terminate(PATIENCE)?))
}

#[test]
fn a_busy_receiver_gets_every_record_in_the_end_and_the_trouble_is_told_once() -> Result<()> {
    let (receiver, finished) = run(&[Answer::Fail(Code::Unavailable); 3], &[])?;
    let line = Line::of(&finished.stderr, "process events")?;
    line.assert_all_delivered();
    assert_eq!(receiver.taken() as u64, line.outcome("delivered"), "none twice");
    let count = |text: &str| finished.stderr.lines().filter(|line| line.contains(text)).count();
    assert_eq!((count("failed to send"), count("answers again")), (1, 1), "{}", finished.stderr);
    Ok(())
}

#[test]
fn what_the_receiver_rejects_is_counted_with_its_reason() -> Result<()> {
    let (receiver, finished) = run(&[Answer::RejectOne], &[])?;
    let line = Line::of(&finished.stderr, "process events")?;
    assert_eq!(line.outcome("export_rejected"), 1, "{line:?}");
    assert_eq!(line.outcomes.values().sum::<u64>(), line.attempted, "{line:?}");
    assert_eq!(receiver.taken() as u64, line.outcome("delivered"));
    assert!(finished.stderr.contains("one record is too old"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn a_batch_that_is_refused_for_good_is_not_sent_again() -> Result<()> {
    let (receiver, finished) = run(&[Answer::Fail(Code::InvalidArgument)], &[])?;
    let line = Line::of(&finished.stderr, "process events")?;
    assert!(line.outcome("export_rejected") > 0, "{line:?}");
    assert_eq!(line.outcomes.values().sum::<u64>(), line.attempted, "{line:?}");
    assert_eq!(receiver.taken() as u64, line.outcome("delivered"));
    Ok(())
}

#[test]
fn what_comes_while_an_answer_is_awaited_keeps_its_place_behind() -> Result<()> {
    let late = Answer::After(Duration::from_millis(150));
    let (receiver, finished) =
        run(&[Answer::Fail(Code::Unavailable), late, Answer::Fail(Code::Unavailable), late], &[])?;
    Line::of(&finished.stderr, "process events")?.assert_all_delivered();
    let observed = receiver.observed();
    assert!(observed.len() > 10 && observed.is_sorted(), "{observed:?}");
    Ok(())
}

#[test]
fn batches_that_were_refused_together_are_sent_once_more_one_by_one() -> Result<()> {
    // Batches gather while the first answer is awaited.
    let answers = [Answer::After(Duration::from_millis(300)), Answer::Fail(Code::InvalidArgument)];
    let (receiver, finished) = run(&answers, &[])?;
    let line = Line::of(&finished.stderr, "process events")?;
    line.assert_all_delivered();
    assert_eq!(receiver.taken() as u64, line.outcome("delivered"));
    assert!(receiver.observed().is_sorted(), "{:?}", receiver.observed());
    Ok(())
}

#[test]
fn an_answer_that_does_not_come_in_time_is_asked_for_again() -> Result<()> {
    let (_, finished) = run(&[Answer::After(Duration::from_secs(3))], &[("LEAF_OTLP_TIMEOUT", "200ms")])?;
    let line = Line::of(&finished.stderr, "process events")?;
    line.assert_all_delivered();
    assert!(finished.stderr.contains("no answer in 200ms"), "{}", finished.stderr);
    Ok(())
}
