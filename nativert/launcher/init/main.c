/* From exec to the loop: what the launcher's child has opened is taken over, and it is told. */
#include "init.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONTROL_FD 3
#define CONFIG_FD 4

/* For scripts/build_init.py: what this program was made from. */
__attribute__((used)) const char source_digest[] = "nativert-init-source:" SOURCE_DIGEST;

/* Read a whole file and close it; NULL with errno. */
static char *slurp(int fd, size_t *length)
{
	struct stat about;
	char *data;
	ssize_t got;

	if (fstat(fd, &about))
		return NULL;
	data = malloc((size_t)about.st_size + 1);
	if (!data)
		return NULL;
	got = pread(fd, data, (size_t)about.st_size, 0);
	close(fd);
	if (got != about.st_size) {
		errno = EIO;
		free(data);
		return NULL;
	}
	*length = (size_t)got;
	return data;
}

/* A descriptor that the configuration names, or -1 where it has null. */
static int descriptor(const struct json *config, const char *key)
{
	int64_t number = -1;

	if (json_integer(config, key, CONFIG_FD + 1, INT32_MAX, &number))
		cloexec((int)number);
	return (int)number;
}

static int take_cgroup(const struct json *config, struct failure *failure)
{
	const struct json *evidence = json_get(config, "evidence");
	const struct json *tasks = json_get(config, "tasks");
	const struct json *at = tasks ? tasks + 1 : NULL;

	if (!tasks || tasks->kind != JSON_LIST || tasks->entries > MAX_TASKS)
		return fail(failure, EINVAL, NULL, "no list of cgroups");
	for (uint32_t i = 0; i < tasks->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_INTEGER)
			return fail(failure, EINVAL, NULL, "a cgroup that is no descriptor");
		cloexec((int)at->integer);
		self.around.tasks[self.around.task_count++] = (int)at->integer;
	}
	self.around.into = descriptor(config, "into");
	self.evidence = (struct evidence){
		.oom = descriptor(evidence, "oom"),
		.peak = descriptor(evidence, "peak"),
		.cpu = descriptor(evidence, "cpu"),
		.pids = descriptor(evidence, "pids"),
	};
	return 0;
}

static int take_filter(int fd, struct failure *failure)
{
	size_t length = 0;
	char *program = slurp(fd, &length);

	if (!program)
		return fail(failure, errno, "seccomp", NULL);
	self.around.seccomp.filter = (struct sock_filter *)(void *)program;
	self.around.seccomp.len = (unsigned short)(length / sizeof(struct sock_filter));
	return 0;
}

static int take_over(const struct json *config, struct failure *failure)
{
	const struct json *log = json_get(config, "log");
	int64_t id_base, last_capability, max_bytes, files;
	const char *version = json_text(config, "version");
	const char *boot_id = json_text(config, "boot_id");

	if (!version || !boot_id ||
	    !json_integer(config, "id_base", 1, UINT32_MAX - 1, &id_base) ||
	    !json_integer(config, "last_capability", 0, 63, &last_capability) ||
	    !json_integer(log, "max_bytes", 1, INT64_MAX / 2, &max_bytes) ||
	    !json_integer(log, "files", 1, 100000, &files))
		return fail(failure, EINVAL, NULL, "a configuration of another version");
	self.version = strdup(version);
	self.boot_id = strdup(boot_id);
	self.around.id_base = (uint32_t)id_base;
	self.around.last_capability = (int)last_capability;
	self.directory = descriptor(config, "directory");
	self.listener = descriptor(config, "listener");
	self.around.user = descriptor(config, "user");
	log_init(&self.log, descriptor(log, "directory"), max_bytes, (int)files);
	if (!self.version || !self.boot_id || self.directory < 0 || self.listener < 0 ||
	    self.around.user < 0 || self.log.directory < 0)
		return fail(failure, EINVAL, NULL, "a descriptor is missing");
	if (take_cgroup(config, failure))
		return -1;
	return take_filter(descriptor(config, "seccomp"), failure);
}

static int take_signals(struct failure *failure)
{
	sigset_t set;

	/* What a Python ignores, such as SIGPIPE, stays ignored over exec, and over our child's. */
	for (int number = 1; number <= SIGRTMAX; number++)
		signal(number, SIG_DFL);
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	self.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	return self.signals < 0 ? fail(failure, errno, "signalfd", NULL) : 0;
}

static int begin(struct failure *failure)
{
	struct json *config;
	size_t length = 0;
	char *data = slurp(CONFIG_FD, &length);
	int result;

	if (!data)
		return fail(failure, errno, "configuration", NULL);
	config = json_parse(data, length);
	if (!config)
		return fail(failure, EINVAL, NULL, "no configuration");
	result = take_over(config, failure);
	free(config);
	free(data);
	return result || take_signals(failure);
}

int main(int argc, char **argv)
{
	struct failure failure = {.step = "init"};
	int failed;

	/* First: /proc entries stay host root's, and no ptrace. exec has undone what was before. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (argc == 1)
		prctl(PR_SET_NAME, argv[0], 0, 0, 0);
	cloexec(CONTROL_FD);
	failed = begin(&failure);
	text_open(&outgoing);
	if (failed)
		put_failure(&outgoing, &failure);
	else
		put_bool(&outgoing, "ok", true);
	text_close(&outgoing);
	packet_send(CONTROL_FD, &outgoing, -1);
	close(CONTROL_FD);
	if (failed)
		return 1;
	loop();
}
