/* Sessions inside an instance: programs started beside the application, and who asked. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Give what a session's program has as stdin, stdout, stderr: what the client sent. */
static int sent_streams(const struct packet *packet, int stdio[3], struct failure *failure)
{
	struct stat about;

	if (packet->count != 3)
		return fail(failure, 0, NULL, "three descriptors are needed");
	for (size_t i = 0; i < 3; i++) {
		if (fstat(packet->fds[i], &about))
			return fail(failure, errno, NULL, NULL);
		/* Whoever holds one walks the host from there (CVE-2024-21626). */
		if (S_ISDIR(about.st_mode))
			return fail(failure, EISDIR, NULL,
				    "a directory cannot be stdin, stdout or stderr");
		stdio[i] = packet->fds[i];
	}
	return 0;
}

static bool size(const struct json *message, const char *key, int64_t otherwise,
		 unsigned short *cells)
{
	int64_t number = otherwise;

	if (json_get(message, key) && !json_integer(message, key, 0, UINT16_MAX, &number))
		return false;
	*cells = (unsigned short)number;
	return true;
}

/* Make a pseudo-terminal of the instance's own devpts, so that ttyname(3) works inside. */
static int open_terminal(const struct json *wanted, int *master, int *slave,
			 struct failure *failure)
{
	struct winsize window = {0};
	int unlocked = 0;

	if (!size(wanted, "rows", 24, &window.ws_row) ||
	    !size(wanted, "columns", 80, &window.ws_col))
		return fail(failure, 0, NULL, "rows and columns are no size of a terminal");
	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*master < 0)
		return fail(failure, errno, "/dev/ptmx", NULL);
	if (!ioctl(*master, TIOCSPTLCK, &unlocked) && !ioctl(*master, TIOCSWINSZ, &window)) {
		/* By ioctl, not by name: a name in /dev/pts could be another's (ioctl_tty(2)). */
		*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (*slave >= 0)
			return 0;
	}
	fail(failure, errno, "/dev/ptmx", NULL);
	close_fd(master);
	return -1;
}

static struct session *free_session(void)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++)
		if (!self.sessions[i].started.pid)
			return &self.sessions[i];
	return NULL;
}

static void begin(struct session *session, struct connection *connection,
		  const struct started *started)
{
	*session = (struct session){.connection = connection, .started = *started, .poll = -1};
	connection->session = session;
	self.session_count++;
}

static int start(struct connection *connection, const struct program *program, const int stdio[3],
		 bool terminal, struct failure *failure)
{
	struct session *session = free_session();
	struct started started;

	if (!session)
		return fail(failure, EAGAIN, NULL, "64 sessions run already");
	if (child_start(program, stdio, terminal, &started, failure))
		return -1;
	begin(session, connection, &started);
	return 0;
}

/* Start what the message asks for; its report tells how that went. */
void session_exec(struct connection *connection, const struct packet *packet,
		  struct failure *failure)
{
	bool terminal = json_true(packet->message, "terminal");
	struct program program;
	int master = -1;
	int slave = -1;
	int stdio[3];

	if (connection->session) {
		fail(failure, 0, NULL, "this connection has a session already");
		return;
	}
	if (program_read(&program, json_get(packet->message, "program"), failure))
		goto out;
	if (!terminal) {
		if (sent_streams(packet, stdio, failure))
			goto out;
	} else {
		if (open_terminal(packet->message, &master, &slave, failure))
			goto out;
		stdio[0] = stdio[1] = stdio[2] = slave;
	}
	if (!start(connection, &program, stdio, terminal, failure) && terminal) {
		text_open(&outgoing);
		put_bool(&outgoing, "terminal", true);
		text_close(&outgoing);
		connection_send(connection, &outgoing, master);
	}
out:
	close_fd(&slave);
	close_fd(&master);
	program_free(&program);
}

/* Have CRIU write the application, which is frozen, into the directory that came along. */
void session_dump(struct connection *connection, const struct packet *packet,
		  struct failure *failure)
{
	struct session *session = free_session();
	struct started started;

	if (connection->session) {
		fail(failure, 0, NULL, "this connection has a session already");
	} else if (self.application.state != RUNNING) {
		fail(failure, ESRCH, NULL, "the application does not run");
	} else if (!session) {
		fail(failure, EAGAIN, NULL, "64 sessions run already");
	} else if (!criu_start(packet, packet->fds, packet->count, NULL, &started, failure)) {
		begin(session, connection, &started);
		session->stays = true;
	}
}

bool session_stays(void)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++)
		if (self.sessions[i].started.pid && self.sessions[i].stays)
			return true;
	return false;
}

static void tell(struct session *session, const struct text *text)
{
	if (session->connection)
		connection_send(session->connection, text, -1);
}

/* Pass on what its child reports. */
void session_report(struct session *session)
{
	static struct report report;
	struct failure failure;
	enum reported reported;

	if (session->started.report < 0)
		return;
	reported = child_report(session->started.report, &report, &failure);
	if (reported == REPORT_NONE_YET)
		return;
	close_fd(&session->started.report);
	text_open(&outgoing);
	if (reported == REPORT_FAILED) {
		session->failed = true;
		put_failure(&outgoing, &failure);
	} else {
		put_bool(&outgoing, "ok", true);
		put_integer(&outgoing, "pid", session->started.pid);
	}
	text_close(&outgoing);
	tell(session, &outgoing);
}

/* Tell the end of the session whose program had *pid*; false if there is none. */
bool session_reaped(pid_t pid, int status)
{
	for (size_t i = 0; i < MAX_SESSIONS; i++) {
		struct session *session = &self.sessions[i];

		if (session->started.pid != pid)
			continue;
		session_report(session);
		close_fd(&session->started.report);
		close_fd(&session->started.pidfd);
		session->started.pid = 0;
		self.session_count--;
		if (session->stays)
			criu_forget();
		if (session->connection)
			session->connection->session = NULL;
		if (!session->failed) {
			int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);

			text_open(&outgoing);
			put_string(&outgoing, "event", "exit");
			put_integer(&outgoing, "code", code);
			text_close(&outgoing);
			tell(session, &outgoing);
		}
		return true;
	}
	return false;
}

/* End it as a terminal that goes away would, and for good. */
void session_hang_up(struct session *session)
{
	session->connection = NULL;
	if (session->stays)
		return;
	/* Just forked, it may not lead its group yet. */
	kill(-session->started.pid, SIGHUP);
	kill(-session->started.pid, SIGKILL);
	send_signal(session->started.pidfd, SIGKILL);
}
