//! The first page: what this node is, how it is, what it saw last, how to send the first span. Plain HTML, rendered
//! here; whatever comes from outside goes through [`escape`].

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{Html, IntoResponse, Response};
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::ports::NodeStatus;
use spandrel_model::search::FoundTrace;

use super::{Addresses, Native, in_time};
use crate::client::address_flag;
use crate::limits::{FIRST_PAGE_TIMEOUT_MS, FIRST_PAGE_TRACES};
use crate::question::SearchQuestion;
use crate::tenant;
use crate::time::{format_duration, format_instant, now};

const STYLE: &str = include_str!("page.css");

pub(super) async fn first_page(State(native): State<Native>, headers: HeaderMap) -> Response {
    let status = native.ports.admin.status().await;
    let traces = match tenant::of_headers(native.ports.ingest.as_ref(), &headers) {
        Ok(tenant) => recent(&native, tenant).await,
        Err(error) => Err(error.detail.message.clone()),
    };
    let page = Html(render(native.addresses, &status, &traces));
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    );
    ([("content-security-policy", policy)], page).into_response()
}

async fn recent(native: &Native, tenant: TenantId) -> Result<Vec<FoundTrace>, String> {
    let question = SearchQuestion {
        limit: Some(FIRST_PAGE_TRACES as u64),
        timeout_ms: Some(FIRST_PAGE_TIMEOUT_MS),
        ..SearchQuestion::default()
    };
    let found = async {
        let request = question.ask(tenant, now())?;
        in_time(FIRST_PAGE_TIMEOUT_MS, native.ports.query.search(request)).await
    };
    match found.await {
        Ok(answer) => Ok(answer.traces),
        Err(error) => Err(error.detail.message.clone()),
    }
}

fn render(
    addresses: Addresses,
    status: &NodeStatus,
    traces: &Result<Vec<FoundTrace>, String>,
) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Spandrel</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head><body>\
         <header><h1>Spandrel</h1><p>node {} of <strong>{}</strong>, version {}</p></header><main>",
        status.node.0,
        escape(&status.cluster),
        escape(&status.version),
    );
    write_health(&mut page, status);
    write_first_span(&mut page, addresses);
    write_traces(&mut page, addresses, traces);
    write_policy(&mut page, status);
    page.push_str("</main></body></html>\n");
    page
}

fn write_health(page: &mut String, status: &NodeStatus) {
    let (class, health) = match (status.ready, status.pressure) {
        (false, _) => ("bad", format!("not ready: {}", status.not_ready_because)),
        (true, 0) => ("good", "ready, no pressure".to_owned()),
        (true, level @ 1..=3) => ("warn", format!("ready, memory pressure {level} of 4")),
        (true, _) => ("bad", "refusing spans: memory is used up".to_owned()),
    };
    let _ = write!(
        page,
        "<section><h2>Health</h2><p class=\"{class}\">{}</p><dl>",
        escape(&health)
    );
    let rows = [
        (
            "Memory credit",
            format!(
                "{} of {}",
                size(status.credit_used_bytes),
                size(status.credit_capacity_bytes)
            ),
        ),
        ("Open traces", status.open_traces.to_string()),
        (
            "Kept, not yet in a block",
            status.unpaged_traces.to_string(),
        ),
        (
            "Journal",
            format!(
                "{}, since {}",
                size(status.journal_bytes),
                format_second(status.journal_since)
            ),
        ),
        ("Blocks", size(status.block_bytes)),
        ("Index", size(status.index_bytes)),
        ("Retention", period(status.retention_seconds)),
    ];
    for (name, value) in rows {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    page.push_str("</dl></section>");
}

fn write_first_span(page: &mut String, addresses: Addresses) {
    let Addresses {
        http,
        otlp_grpc,
        otlp_http,
    } = addresses;
    let _ = write!(
        page,
        "<section><h2>Send the first span</h2><p>Any OpenTelemetry SDK or collector, by its environment:</p>\
         <pre>export OTEL_EXPORTER_OTLP_ENDPOINT=http://{otlp_http}\n\
         export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\nexport OTEL_SERVICE_NAME=my-service</pre>\
         <p>gRPC: <code>http://{otlp_grpc}</code> with <code>OTEL_EXPORTER_OTLP_PROTOCOL=grpc</code>. \
         Or one span by hand:</p><pre>{}</pre><p>Queries: <code>http://{http}/v1/traces/search</code></p></section>",
        escape(&curl_line(otlp_http)),
    );
}

fn curl_line(otlp_http: std::net::SocketAddr) -> String {
    format!(
        "id() {{ od -An -N$1 -tx1 /dev/urandom | tr -d ' \\n'; }}; now=$(date +%s)\ncurl http://{otlp_http}/v1/traces -H 'Content-Type: application/json' -d '{{\"resourceSpans\":\
         [{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"curl\"}}}}]}},\
         \"scopeSpans\":[{{\"spans\":[{{\"traceId\":\"'$(id 16)'\",\"spanId\":\"'$(id 8)'\",\
         \"name\":\"hello\",\"kind\":1,\"startTimeUnixNano\":\"'$now'000000000\",\"endTimeUnixNano\":\"'$now'250000000\"}}]}}]}}]}}'"
    )
}

fn write_traces(page: &mut String, addresses: Addresses, traces: &Result<Vec<FoundTrace>, String>) {
    page.push_str("<section class=\"wide\"><h2>Traces of the last hour</h2>");
    match traces {
        Err(message) => {
            let _ = write!(page, "<p class=\"warn\">{}</p>", escape(message));
        }
        Ok(traces) if traces.is_empty() => {
            let _ = write!(
                page,
                "<p>None yet. For some to look at: <code>spandrel demo --spans 1000{}</code></p>",
                address_flag("--endpoint", addresses.otlp_grpc),
            );
        }
        Ok(traces) => {
            page.push_str(
                "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr><th>Root</th><th>Start, UTC</th><th>Duration</th>\
                 <th>Status</th><th>Spans</th><th>State</th><th>Trace</th></tr></thead><tbody>",
            );
            for trace in traces {
                let id = trace.trace_id;
                let _ = write!(
                    page,
                    "<tr><td class=\"name\"><a href=\"/v1/traces/{id}\">{}: {}</a></td>\
                     <td><time datetime=\"{}\">{}</time></td><td>{}</td><td class=\"{}\">{}</td>\
                     <td>{}</td><td>{}</td><td><code>{id}</code></td></tr>",
                    escape(&trace.root_service),
                    escape(&trace.root_operation),
                    format_instant(trace.earliest),
                    time_of_day(trace.earliest),
                    format_duration(i128::from(trace.duration)),
                    trace.status.as_str(),
                    trace.status.as_str(),
                    trace.span_count,
                    trace.state.as_str(),
                );
            }
            let _ = write!(
                page,
                "</tbody></table></div><p>Drawn in a terminal: <code>spandrel query trace ID{}</code></p>",
                address_flag("--addr", addresses.http),
            );
        }
    }
    page.push_str("</section>");
}

fn write_policy(page: &mut String, status: &NodeStatus) {
    let _ = write!(
        page,
        "<section class=\"wide\"><h2>Policy in force, version {}</h2><ol>",
        status.policy_version
    );
    for policy in &status.policies {
        let _ = write!(page, "<li>{}</li>", escape(policy));
    }
    page.push_str("</ol><p>Any of them keeps a trace, unless one drops it. Change them with <code>spandrel policy apply FILE</code>.</p></section>");
}

/// An instant to the second, as `2026-11-24 15:29:52 UTC`.
fn format_second(at: UnixNanos) -> String {
    let whole = format_instant(at);
    let (day, rest) = whole.split_once('T').unwrap_or((&whole, ""));
    let second = rest.split(['.', 'Z']).next().unwrap_or_default();
    format!("{day} {second} UTC")
}

/// The time of day of an instant to the millisecond: the list holds an hour.
fn time_of_day(at: UnixNanos) -> String {
    let milliseconds = UnixNanos(at.0 - at.0 % UnixNanos::PER_MILLI);
    let whole = format_instant(milliseconds);
    let rest = whole.split_once('T').map_or("", |(_, rest)| rest);
    rest.get(.."00:00:00.000".len()).unwrap_or(rest).to_owned()
}

/// A period in the largest unit that it fills.
fn period(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let whole = units
        .iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{seconds} s"),
        |(unit, name)| format!("{} {name}", seconds / unit),
    )
}

fn size(bytes: u64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].iter();
    let (mut unit, mut amount, mut rest) = (units.next(), bytes, 0);
    while amount >= 1_024 && units.len() > 0 {
        rest = amount % 1_024 * 10 / 1_024;
        amount /= 1_024;
        unit = units.next();
    }
    match unit {
        None | Some(&"B") => format!("{amount} B"),
        Some(unit) => format!("{amount}.{rest} {unit}"),
    }
}

/// Text made safe for HTML, in elements and in quoted attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        assert_eq!(
            escape("<a b='c' d=\"e\">&"),
            "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;"
        );
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn times_are_for_people() {
        let at = UnixNanos(1_795_534_192_603_787_897);
        assert_eq!(format_second(at), "2026-11-24 15:29:52 UTC");
        assert_eq!(time_of_day(at), "15:29:52.603");
        assert_eq!(time_of_day(UnixNanos(1)), "00:00:00.000");
        let periods = [604_800, 7_200, 90, 120].map(period);
        assert_eq!(periods, ["7 d", "2 h", "90 s", "2 min"]);
    }
}
