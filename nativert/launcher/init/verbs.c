/*
 * What init is asked for: hello, status, run, signal, script, exec, release, frozen as proto 1; dump
 * and restore (checkpoint.c), which an older init does not know and says so.
 */
#include "init.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PROTO 1
#define MAX_VERB 64

static void ok(struct connection *connection)
{
	text_open(&outgoing);
	put_bool(&outgoing, "ok", true);
	text_close(&outgoing);
	connection_send(connection, &outgoing, -1);
}

void put_hello(struct text *text)
{
	put_integer(text, "proto", PROTO);
	put_string(text, "version", self.version);
	put_string(text, "boot_id", self.boot_id);
	put_integer(text, "pid", getpid());
}

static void hello(struct connection *connection, const struct packet *packet,
		  struct failure *failure)
{
	(void)packet;
	(void)failure;
	text_open(&outgoing);
	put_hello(&outgoing);
	text_close(&outgoing);
	connection_send(connection, &outgoing, -1);
}

static void status(struct connection *connection, const struct packet *packet,
		   struct failure *failure)
{
	const struct application *app = &self.application;
	const struct json *cgroup = json_get(packet->message, "cgroup");
	bool there = app->state != IDLE;

	/* An init that does not know this field says nothing of it in its answer. */
	if (cgroup && cgroup_replace(packet, cgroup, failure))
		return;
	connection->follows = there && json_true(packet->message, "follow");
	text_open(&outgoing);
	application_status(&outgoing);
	if (cgroup)
		put_bool(&outgoing, "cgroup", true);
	if (session_stays())
		put_bool(&outgoing, "dumps", true);
	text_close(&outgoing);
	connection_send(connection, &outgoing,
			there && json_true(packet->message, "pidfd") ? app->started.pidfd : -1);
}

static void run(struct connection *connection, const struct packet *packet, struct failure *failure)
{
	struct program program;
	int64_t number;

	if (self.application.state != IDLE) {
		fail(failure, EBUSY, NULL, "the application runs already");
		return;
	}
	if (!json_integer(packet->message, "run", INT64_MIN, INT64_MAX, &number)) {
		fail(failure, 0, NULL, "run is no number");
		return;
	}
	if (!program_read(&program, json_get(packet->message, "program"), failure) &&
	    !application_start(number, &program, failure)) {
		self.starter = connection;
		connection->follows = json_true(packet->message, "follow");
	}
	program_free(&program);
}

/* Start CRIU, which puts an application back; what becomes of it is told as a start is. */
static void restore(struct connection *connection, const struct packet *packet,
		    struct failure *failure)
{
	struct program owner = {0};
	int64_t number, pid, uid, gid, oom_score_adj;

	if (self.application.state != IDLE) {
		fail(failure, EBUSY, NULL, "the application runs already");
		return;
	}
	if (!json_integer(packet->message, "run", INT64_MIN, INT64_MAX, &number) ||
	    !json_integer(packet->message, "pid", 2, INT_MAX, &pid) ||
	    !json_integer(packet->message, "uid", 0, UINT16_MAX, &uid) ||
	    !json_integer(packet->message, "gid", 0, UINT16_MAX, &gid) ||
	    !json_integer(packet->message, "oom_score_adj", INT_MIN, INT_MAX, &oom_score_adj)) {
		fail(failure, 0, NULL, "run, pid, uid, gid and oom_score_adj are numbers");
		return;
	}
	owner.uid = (uid_t)uid;
	owner.gid = (gid_t)gid;
	owner.oom_score_adj = (int)oom_score_adj;
	if (!application_restore(number, &owner, (pid_t)pid, packet, failure)) {
		self.starter = connection;
		connection->follows = json_true(packet->message, "follow");
	}
}

static void never(const struct failure *failure)
{
	struct connection *starter = self.starter;

	self.starter = NULL;
	application_never(failure);
	if (starter) {
		starter->follows = false;
		text_open(&outgoing);
		put_failure(&outgoing, failure);
		text_close(&outgoing);
		connection_send(starter, &outgoing, -1);
	}
	tell_end();
}

static void there(void)
{
	struct connection *starter = self.starter;

	self.starter = NULL;
	if (!starter)
		return;
	text_open(&outgoing);
	put_bool(&outgoing, "ok", true);
	application_status(&outgoing);
	text_close(&outgoing);
	connection_send(starter, &outgoing, self.application.started.pidfd);
}

/* Tell who started the application what its child reports. */
void application_report(void)
{
	static struct report report;
	struct application *app = &self.application;
	struct failure failure;
	enum reported reported;

	if (app->state != STARTING || app->started.report < 0)
		return;
	reported = child_report(app->started.report, &report, &failure);
	if (reported == REPORT_NONE_YET)
		return;
	close_fd(&app->started.report);
	if (reported == REPORT_FAILED) {
		never(&failure);
	} else if (!app->restores) {
		app->state = app->main_ended ? ENDING : RUNNING;
		there();
	}
}

/* CRIU has ended with wait *status*: what it has restored is the application. */
void application_restored(int status)
{
	struct application *app = &self.application;
	struct failure failure = {.step = "restore"};

	app->main_ended = true;
	application_report();
	if (app->state != STARTING)
		return;
	if (status)
		fail(&failure, 0, NULL, "CRIU has not restored it");
	if (status || application_adopt(&failure)) {
		/* Of what it has begun nothing stays. */
		kill_all(SIGKILL);
		never(&failure);
	} else {
		there();
	}
}

static void send_asked(struct connection *connection, const struct packet *packet,
		       struct failure *failure)
{
	struct application *app = &self.application;
	bool there = app->state != IDLE && !app->main_ended;
	bool all = json_true(packet->message, "all");
	int64_t number;

	if (!json_integer(packet->message, "signal", INT_MIN, INT_MAX, &number)) {
		fail(failure, 0, NULL, "signal is no number");
		return;
	}
	if (number < 0 || number > SIGRTMAX) {
		fail(failure, EINVAL, NULL, NULL);
		return;
	}
	if (!all && !there) {
		fail(failure, ESRCH, NULL, "the application does not run");
		return;
	}
	if (there) {
		/* Before it is sent: what it brings about comes after it. */
		app->asked_signal = (int)number;
		app->asked_ns = now_ns(CLOCK_REALTIME);
	}
	if (all) {
		kill_all((int)number);
	} else if (send_signal(app->started.pidfd, (int)number)) {
		fail(failure, errno, NULL, NULL);
		return;
	}
	ok(connection);
}

static void release(struct connection *connection, const struct packet *packet,
		    struct failure *failure)
{
	(void)packet;
	(void)failure;
	kill_all(SIGKILL);
	ok(connection);
	/* The kernel kills and reaps what is left of the PID namespace before this ends. */
	_exit(0);
}

static const struct {
	const char *name;
	void (*carry_out)(struct connection *connection, const struct packet *packet,
			  struct failure *failure);
} verbs[] = {
	{"hello", hello},
	{"status", status},
	{"run", run},
	{"exec", session_exec},
	{"script", session_exec},
	{"signal", send_asked},
	{"release", release},
	{"dump", session_dump},
	{"restore", restore},
};

/* Carry out one message; no message ends the instance. */
void verb(struct connection *connection, const struct packet *packet)
{
	const char *name = json_text(packet->message, "verb");
	char unknown[MAX_VERB + 32] = "unknown verb";
	struct failure failure = {.step = name ? name : "verb"};

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (!name || strcmp(name, verbs[i].name))
			continue;
		verbs[i].carry_out(connection, packet, &failure);
		if (failure.text)
			goto failed;
		return;
	}
	if (name && strlen(name) <= MAX_VERB)
		strcat(strcat(strcat(unknown, " '"), name), "'");
	else
		failure.step = "verb";
	fail(&failure, 0, NULL, unknown);
failed:
	text_open(&outgoing);
	put_failure(&outgoing, &failure);
	text_close(&outgoing);
	connection_send(connection, &outgoing, -1);
}
