//! Serving a connection that speaks HTTP/2: its requests are tasks of their own.
//!
//! A request runs on to its end whatever becomes of its stream or connection, as one by HTTP/1.1
//! does, so that what is known of its event stays true. The tasks are the thread's.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response};

use super::{Connections, Handler, Place, doors::Seat};
use crate::{
    connection::{
        Verdict,
        http2::{
            Carrier, CarrierIo, Passage,
            exchange::{answer, pass_over, received, takes_leave},
        },
    },
    rejection::{Malformation, Rejection, parting_response},
};

type Library = Connection<CarrierIo, Bytes>;

impl<H: Handler> Connections<H> {
    /// Serves a connection to its end.
    pub(super) async fn serve_http2(self: Rc<Self>, carrier: Rc<Carrier>, place: &Place<'_, H>) {
        let mut handshake = pin!(carrier.builder().handshake(CarrierIo(carrier.clone())));
        let library = poll_fn(|cx| {
            place.wake_with(cx.waker());
            match handshake.as_mut().poll(cx) {
                Poll::Ready(library) => Poll::Ready(library.map_err(|error| fault(&error))),
                Poll::Pending if self.is_last_call_over.get() => Poll::Ready(Err(None)),
                Poll::Pending => carrier
                    .poll_overdue(cx)
                    .map(|verdict| Err(rejection(verdict))),
            }
        });
        let rejection = match library.await {
            Ok(mut library) => self.carry(&carrier, &mut library).await,
            Err(rejection) => rejection,
        };
        if let Some(rejection) = rejection {
            self.handler.refused(rejection, carrier.ip());
        }
        carrier.finish().await;
    }

    /// Takes requests until the connection has ended; what it ended for, if it was refused.
    async fn carry(
        self: &Rc<Self>,
        carrier: &Rc<Carrier>,
        library: &mut Library,
    ) -> Option<Rejection> {
        let mut is_told = false;
        let mut verdict = None;
        poll_fn(|cx| {
            if self.is_last_call_over.get() {
                carrier.leave();
            }
            if carrier.is_leaving() && !is_told {
                is_told = true;
                library.graceful_shutdown();
            }
            loop {
                match self.poll_requests(carrier, library, cx) {
                    Poll::Ready(fault) => return Poll::Ready(verdict.map_or(fault, rejection)),
                    Poll::Pending if verdict.is_some() => return Poll::Pending,
                    Poll::Pending => match carrier.poll_overdue(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(why) => {
                            verdict = Some(why);
                            library.abrupt_shutdown(Carrier::reason(why));
                        }
                    },
                }
            }
        })
        .await
    }

    /// Starts the requests that are here; ready when the connection has ended.
    fn poll_requests(
        self: &Rc<Self>,
        carrier: &Rc<Carrier>,
        library: &mut Library,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Rejection>> {
        loop {
            match library.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(fault(&error)),
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let most = self.handler.limits().max_connections;
                    match carrier.enter().zip(self.doors.seat(most)) {
                        Some(admission) => self.start(admission, carrier.clone(), request, respond),
                        None => self.turn_stream_away(carrier, &request, respond),
                    }
                }
            }
        }
    }

    fn start(
        self: &Rc<Self>,
        (passage, seat): (Passage, Seat),
        carrier: Rc<Carrier>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) {
        let here = self.clone();
        let exchange = async move {
            let _seat = seat;
            let respond = Rc::new(RefCell::new(respond));
            let (mut head, body) = request.into_parts();
            let body = Rc::new(RefCell::new(body));
            let inflow = match received(&mut head, &body, &respond, &passage.watch) {
                Ok(inflow) => inflow,
                Err(what) => {
                    here.handler
                        .refused(Rejection::Malformed(what), carrier.ip());
                    respond.borrow_mut().send_reset(Reason::PROTOCOL_ERROR);
                    return;
                }
            };
            let method = head.method.clone();
            let request = Request::from_parts(head, inflow);
            let response = here.handler.handle(&passage.watch, request).await;
            let is_last = takes_leave(&response);
            // A stream that its sender gave up says nothing about its connection.
            if answer(&respond, response, &method, &passage.watch).await && is_last {
                carrier.leave();
            }
            pass_over(&body).await;
        };
        self.streams.borrow_mut().spawn_local(exchange);
    }

    /// Refuses a request for which there is no room.
    fn turn_stream_away(
        &self,
        carrier: &Carrier,
        request: &Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        self.handler.refused(Rejection::Overloaded, carrier.ip());
        let (head, body) = parting_response(Rejection::Overloaded).into_parts();
        let is_bare = request.method() == Method::HEAD;
        let begun = respond.send_response(Response::from_parts(head, ()), is_bare);
        if let (Ok(mut stream), false) = (begun, is_bare) {
            // One that its sender gave up takes nothing.
            let _ = stream.send_data(body.into(), true);
        }
    }
}

/// What a connection that the library ended counts as, if that was the sender's fault.
fn fault(error: &h2::Error) -> Option<Rejection> {
    let is_sender = error.is_library();
    is_sender.then_some(Rejection::Malformed(Malformation::Framing))
}

/// What a connection that could not go on counts as.
fn rejection(verdict: Verdict) -> Option<Rejection> {
    match verdict {
        Verdict::Ambiguous => Some(Rejection::Malformed(Malformation::Framing)),
        Verdict::Slow => Some(Rejection::Timeout),
        Verdict::Idle | Verdict::SlowReader => None,
    }
}
