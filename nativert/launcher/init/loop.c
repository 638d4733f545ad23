/* The poll loop: connections, the ends of processes, output. Init waits for nobody. */
#include "init.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct init self;
struct text outgoing;

static struct pollfd polled[2 + 1 + 2 + MAX_SESSIONS + MAX_CONNECTIONS];
static int count;

/* From PID 1 of a PID namespace, -1 means everybody in it except oneself: children that
 * double-forked, and those that are born while the signal is sent, included. */
void kill_all(int number)
{
	kill(-1, number);
}

/* ---- connections ---- */

void connection_drop(struct connection *connection)
{
	struct session *session = connection->session;

	if (connection->sock < 0)
		return;
	close_fd(&connection->sock);
	self.connected--;
	while (self.highest && self.connections[self.highest - 1].sock < 0)
		self.highest--;
	if (self.starter == connection)
		self.starter = NULL;
	connection->session = NULL;
	if (session)
		/* Nobody is left to hear its end. */
		session_hang_up(session);
}

void connection_send(struct connection *connection, const struct text *text, int fd)
{
	if (connection->sock >= 0 && packet_send(connection->sock, text, &fd, fd >= 0))
		/* Gone, or it does not read. */
		connection_drop(connection);
}

static void refuse(int sock, const char *text)
{
	struct failure failure = {.step = "connect", .number = EAGAIN, .text = text};

	text_open(&outgoing);
	put_failure(&outgoing, &failure);
	text_close(&outgoing);
	/* It may have gone already. */
	packet_send(sock, &outgoing, NULL, 0);
	close(sock);
}

static void accept_one(void)
{
	int sock = accept4(self.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred peer = {.uid = (uid_t)-1};
	socklen_t length = sizeof(peer);
	size_t i = 0;

	if (sock < 0)
		return; /* It has gone already. */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != 0) {
		refuse(sock, "only root may connect");
		return;
	}
	if (self.connected == MAX_CONNECTIONS) {
		refuse(sock, "512 clients are connected");
		return;
	}
	while (i < self.highest && self.connections[i].sock >= 0)
		i++;
	if (i == self.highest)
		self.highest++;
	self.connections[i] = (struct connection){.sock = sock, .poll = -1};
	self.connected++;
}

static void receive(struct connection *connection)
{
	struct packet packet;
	enum received received = packet_receive(connection->sock, &packet);

	if (received == RECEIVED_GONE)
		connection_drop(connection);
	if (received != RECEIVED_MESSAGE)
		return;
	verb(connection, &packet);
	packet_free(&packet);
}

/* ---- processes ---- */

void tell_end(void)
{
	text_open(&outgoing);
	put_string(&outgoing, "event", "end");
	put_raw(&outgoing, "end", self.last);
	text_close(&outgoing);
	for (size_t i = 0; i < self.highest; i++) {
		struct connection *connection = &self.connections[i];

		if (connection->sock < 0 || !connection->follows)
			continue;
		connection->follows = false;
		connection_send(connection, &outgoing, -1);
	}
}

static void reaped(pid_t pid, int status)
{
	struct application *app = &self.application;

	if (app->state != IDLE && pid == app->started.pid && !app->main_ended) {
		application_reaped(status);
		application_report();
		return;
	}
	session_reaped(pid, status);
}

/* Whether nothing is being restored; until then nobody is reaped but CRIU, see application.c. */
static bool restored(void)
{
	struct application *app = &self.application;
	int status;

	if (app->state != STARTING || !app->restores)
		return true;
	if (waitpid(app->started.pid, &status, WNOHANG) != app->started.pid)
		return false;
	application_restored(status);
	return true;
}

static void reap(void)
{
	struct application *app = &self.application;
	char siginfo[1024];
	int status;
	pid_t pid;

	/* Take note of all of them: what they say is asked for anew. */
	while (read(self.signals, siginfo, sizeof(siginfo)) > 0)
		;
	if (!restored())
		return;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		reaped(pid, status);
	if (pid < 0 && errno == ECHILD) {
		if (app->state == ENDING) {
			application_finish();
			tell_end();
		}
		return;
	}
	if (app->state == ENDING)
		/* What a child of the application forked meanwhile dies with it. */
		kill_all(SIGKILL);
}

/* ---- the loop ---- */

static int watch(int fd)
{
	polled[count] = (struct pollfd){.fd = fd, .events = POLLIN};
	return count++;
}

static bool due(int at)
{
	return at >= 0 && polled[at].revents;
}

/* Watch the application's output; return when there is something to do for it without that. */
static int64_t watch_output(int64_t now)
{
	struct application *app = &self.application;
	int64_t wake = INT64_MAX;

	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++) {
		const struct pipe *pipe = &app->pipes[i];

		app->poll_pipes[i] = -1;
		if (pipe->fd < 0)
			continue;
		if (pipe->rest && pipe->flush_at < wake)
			wake = pipe->flush_at;
		if (pipe->resume_at <= now)
			app->poll_pipes[i] = watch(pipe->fd);
		else if (pipe->resume_at < wake)
			wake = pipe->resume_at;
	}
	return wake;
}

static void relay(void)
{
	struct application *app = &self.application;
	int64_t now = now_ns(CLOCK_MONOTONIC);

	for (size_t i = 0; i < ARRAY_SIZE(app->pipes) && app->state != IDLE; i++) {
		struct pipe *pipe = &app->pipes[i];

		if (pipe->fd >= 0 && due(app->poll_pipes[i]) && !pipe_relay(pipe))
			pipe_close(pipe);
		if (pipe->rest && pipe->flush_at <= now)
			pipe_flush(pipe);
	}
}

/* Fill the list of descriptors; return how long to wait for them, in milliseconds. */
static int prepare(void)
{
	struct application *app = &self.application;
	int64_t wake = INT64_MAX;

	count = 0;
	watch(self.signals);
	watch(self.listener);
	app->poll_report = app->poll_pipes[0] = app->poll_pipes[1] = -1;
	if (app->state != IDLE) {
		int64_t now = now_ns(CLOCK_MONOTONIC);

		wake = watch_output(now);
		if (wake != INT64_MAX)
			wake = wake > now ? (wake - now + NS_PER_MS - 1) / NS_PER_MS : 0;
		if (app->state == STARTING)
			app->poll_report = watch(app->started.report);
	}
	for (size_t i = 0; i < MAX_SESSIONS && self.session_count; i++) {
		struct session *session = &self.sessions[i];
		bool starts = session->started.pid && session->started.report >= 0;

		session->poll = starts ? watch(session->started.report) : -1;
	}
	for (size_t i = 0; i < self.highest; i++) {
		struct connection *connection = &self.connections[i];

		connection->poll = connection->sock >= 0 ? watch(connection->sock) : -1;
	}
	return wake > INT_MAX ? -1 : (int)wake;
}

_Noreturn void loop(void)
{
	for (;;) {
		int timeout_ms = prepare();

		if (poll(polled, (nfds_t)count, timeout_ms) < 0)
			continue;
		if (due(0))
			reap();
		relay();
		if (due(self.application.poll_report))
			application_report();
		for (size_t i = 0; i < MAX_SESSIONS && self.session_count; i++)
			if (self.sessions[i].started.pid && due(self.sessions[i].poll))
				session_report(&self.sessions[i]);
		for (size_t i = 0; i < self.highest; i++)
			if (self.connections[i].sock >= 0 && due(self.connections[i].poll))
				receive(&self.connections[i]);
		/* Last, so that no number of a connection is used again within one turn. */
		if (due(1))
			accept_one();
	}
}
