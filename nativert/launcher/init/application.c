/*
 * The application of one run: its start, its end, and the evidence that outlives it.
 *
 * The application ends when the process that init started ends; the rest of the PID namespace gets
 * SIGKILL at once, and the end is told when nothing is left.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXIT_FILE "exit.json"
#define TEMPORARY EXIT_FILE ".tmp"

static const char *const states[] = {"idle", "starting", "running", "ending"};
static const char *const streams[] = {"stdout", "stderr"};

static int open_pipes(struct application *app, const struct program *program)
{
	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++)
		app->pipes[i].fd = app->pipes[i].writer = -1;
	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++) {
		if (pipe_open(&app->pipes[i], &self.log, streams[i]))
			return -1;
		/* Many programs open /dev/stdout, which asks for the pipe's own permission. */
		if (fchown(app->pipes[i].writer, self.around.id_base + program->uid,
			   self.around.id_base + program->gid))
			return -1;
	}
	return 0;
}

static void close_pipes(struct application *app)
{
	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++)
		pipe_close(&app->pipes[i]);
}

/* Begin run *number* of a program of *owner*, up to its output. */
static int begin(int64_t number, const struct program *owner, struct failure *failure)
{
	struct application *app = &self.application;

	if (unlinkat(self.directory, EXIT_FILE, 0) && errno != ENOENT)
		return fail(failure, errno, EXIT_FILE, NULL);
	app->number = number;
	app->main_ended = false;
	app->status = 0;
	app->asked_signal = -1;
	app->restores = 0;
	app->poll_report = app->poll_pipes[0] = app->poll_pipes[1] = -1;
	evidence_read(&self.evidence, &app->before);
	app->started_ns = now_ns(CLOCK_REALTIME);
	if (open_pipes(app, owner)) {
		fail(failure, errno, NULL, NULL);
		close_pipes(app);
		return -1;
	}
	return 0;
}

/* It has *failed*, or is on its way: what it becomes is told by its report. */
static int begun(int failed)
{
	struct application *app = &self.application;

	if (failed) {
		close_pipes(app);
		return -1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++)
		close_fd(&app->pipes[i].writer);
	app->start = start_time(app->started.pid);
	app->state = STARTING;
	return 0;
}

/* Start *program* as run *number*. */
int application_start(int64_t number, const struct program *program, struct failure *failure)
{
	struct application *app = &self.application;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int failed;

	if (null < 0)
		return fail(failure, errno, "/dev/null", NULL);
	failed = begin(number, program, failure);
	if (!failed) {
		int stdio[] = {null, app->pipes[0].writer, app->pipes[1].writer};

		failed = begun(child_start(program, stdio, false, &app->started, failure));
	}
	close(null);
	return failed;
}

/*
 * Have CRIU put the process *pid* of another node back as run *number*, by the images that came
 * along. Until CRIU has ended it is in the application's place: what it has restored could end
 * before, and would be reaped before it is known.
 */
int application_restore(int64_t number, const struct program *owner, pid_t pid,
			const struct packet *packet, struct failure *failure)
{
	struct application *app = &self.application;

	if (packet->count != 2)
		return fail(failure, 0, NULL, "two descriptors are needed");
	if (criu_numbers_from(packet->fds[1], pid))
		return fail(failure, errno, "ns_last_pid", NULL);
	if (begin(number, owner, failure))
		return -1;
	app->restores = pid;
	{
		int fds[] = {packet->fds[0], app->pipes[0].writer, app->pipes[1].writer,
			     self.around.user};

		return begun(criu_start(packet, fds, ARRAY_SIZE(fds), &owner->oom_score_adj,
					&app->started, failure));
	}
}

/* Take what CRIU has restored, which is init's child since CRIU has ended. */
int application_adopt(struct failure *failure)
{
	struct application *app = &self.application;
	int pidfd = (int)syscall(SYS_pidfd_open, app->restores, 0);

	if (pidfd < 0)
		return fail(failure, errno, NULL, "CRIU has restored nothing");
	close_fd(&app->started.pidfd);
	app->started.pid = app->restores;
	app->started.pidfd = pidfd;
	app->start = start_time(app->restores);
	app->main_ended = false;
	app->restores = 0;
	app->state = RUNNING;
	criu_forget();
	return 0;
}

/* Tell of it; pid and start time as seen in the instance. */
void application_status(struct text *text)
{
	const struct application *app = &self.application;

	put_integer(text, "lost_log_bytes", self.log.lost_bytes);
	put_string(text, "state", states[app->state]);
	if (app->state == IDLE) {
		put_raw(text, "end", self.last);
		return;
	}
	put_integer(text, "run", app->number);
	put_integer(text, "pid", app->started.pid);
	put_integer_or_null(text, "start", app->start, app->start >= 0);
	put_seconds(text, "started_at", app->started_ns);
	if (app->restores)
		put_bool(text, "restores", true);
	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++) {
		struct stat about;
		bool open = app->pipes[i].fd >= 0 && !fstat(app->pipes[i].fd, &about);

		put_integer_or_null(text, streams[i], open ? (int64_t)about.st_ino : 0, open);
	}
}

/* Take note that the process that was started has ended with wait *status*. */
void application_reaped(int status)
{
	self.application.main_ended = true;
	self.application.status = status;
	if (self.application.state == RUNNING)
		self.application.state = ENDING;
}

static void put_beginning(struct text *text)
{
	const struct application *app = &self.application;

	put_integer(text, "run", app->number);
	put_string(text, "boot_id", self.boot_id);
	put_integer(text, "pid", app->started.pid);
	put_seconds(text, "started_at", app->started_ns);
}

static void remember(const struct text *text)
{
	free(self.last);
	self.last = strdup(text->data);
}

/* End a run whose program could not be executed: it never was the application. */
void application_never(const struct failure *failure)
{
	struct application *app = &self.application;

	close_pipes(app);
	if (!app->main_ended) {
		/* Its like in the instance may have stopped it before it could exit. */
		send_signal(app->started.pidfd, SIGKILL);
		while (waitpid(app->started.pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close_fd(&app->started.pidfd);
	app->state = IDLE;
	text_open(&outgoing);
	put_beginning(&outgoing);
	put_string(&outgoing, "cause", "exec-failed");
	put_open(&outgoing, "error");
	put_string(&outgoing, "step", failure->step);
	put_integer(&outgoing, "errno", failure->number);
	put_string(&outgoing, "path", failure->path);
	put_end(&outgoing);
	text_close(&outgoing);
	remember(&outgoing);
}

static int64_t since(int64_t now, int64_t before)
{
	return now < 0 || before < 0 ? -1 : now - before;
}

static void put_counter(struct text *text, const char *key, int64_t value)
{
	put_integer_or_null(text, key, value, value >= 0);
}

static void put_facts(struct text *text)
{
	const struct application *app = &self.application;
	bool exited = WIFEXITED(app->status);
	bool killed = WIFSIGNALED(app->status);
	const char *cause = exited ? "exited" : "signal";
	struct counters now;
	int64_t oom_kills;

	evidence_read(&self.evidence, &now);
	oom_kills = now.oom_kills - app->before.oom_kills;
	if (killed && WTERMSIG(app->status) == SIGKILL && oom_kills > 0)
		cause = "oom";
	text_open(text);
	put_beginning(text);
	put_integer_or_null(text, "start", app->start, app->start >= 0);
	put_seconds(text, "ended_at", now_ns(CLOCK_REALTIME));
	put_integer_or_null(text, "exit_code", WEXITSTATUS(app->status), exited);
	put_integer_or_null(text, "signal", WTERMSIG(app->status), killed);
	put_integer(text, "oom_kills", oom_kills);
	put_counter(text, "peak_bytes", evidence_peak_bytes(&self.evidence));
	put_counter(text, "cpu_ns", since(now.cpu_ns, app->before.cpu_ns));
	put_counter(text, "oom_events", since(now.oom_events, app->before.oom_events));
	put_counter(text, "pids_events", since(now.pids_events, app->before.pids_events));
	put_string(text, "cause", cause);
	put_raw(text, "error", NULL);
	if (app->asked_signal < 0) {
		put_raw(text, "asked", NULL);
	} else {
		put_open(text, "asked");
		put_integer(text, "signal", app->asked_signal);
		put_seconds(text, "at", app->asked_ns);
		put_end(text);
	}
	text_close(text);
}

/* Write exit.json so that a reader sees the old one or the new one, never a part. */
static void write_exit(const struct text *text)
{
	int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW;
	int fd = openat(self.directory, TEMPORARY, flags, 0600);
	bool whole;

	/*
	 * No room, or the directory was removed: who is connected still hears of the end, and who
	 * asks later finds init idle after this run.
	 */
	if (fd < 0)
		return;
	whole = write(fd, text->data, text->length) == (ssize_t)text->length;
	close(fd);
	if (whole)
		renameat(self.directory, TEMPORARY, self.directory, EXIT_FILE);
}

/* Tell the end. Called when no process of the instance is left. */
void application_finish(void)
{
	struct application *app = &self.application;

	for (size_t i = 0; i < ARRAY_SIZE(app->pipes); i++)
		pipe_finish(&app->pipes[i]);
	close_fd(&app->started.pidfd);
	put_facts(&outgoing);
	app->state = IDLE;
	write_exit(&outgoing);
	remember(&outgoing);
}
