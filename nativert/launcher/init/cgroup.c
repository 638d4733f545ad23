/* A cgroup that takes the place of the one that was removed from outside. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

/* What is taken over from a message: descriptors of our own, until they are kept or closed. */
struct taken {
	int fds[MAX_FDS];
	size_t count;
};

/* A copy of the descriptor that *number* counts in the packet, or -1 with errno. */
static int take(struct taken *taken, const struct packet *packet, const struct json *number)
{
	struct statfs about;
	int fd;

	errno = EBADF;
	if (!number || number->kind != JSON_INTEGER || number->integer < 0 ||
	    (uint64_t)number->integer >= packet->count || taken->count == MAX_FDS)
		return -1;
	if (fstatfs(packet->fds[number->integer], &about))
		return -1;
	errno = EINVAL;
	if (about.f_type != CGROUP2_SUPER_MAGIC && about.f_type != CGROUP_SUPER_MAGIC)
		return -1;
	fd = fcntl(packet->fds[number->integer], F_DUPFD_CLOEXEC, 3);
	if (fd >= 0)
		taken->fds[taken->count++] = fd;
	return fd;
}

/* The same, where null is no descriptor; false with errno. */
static bool take_or_none(struct taken *taken, const struct packet *packet,
			 const struct json *cgroup, const char *key, int *fd)
{
	const struct json *number = json_get(cgroup, key);

	*fd = -1;
	if (!number || number->kind == JSON_NULL)
		return true;
	*fd = take(taken, packet, number);
	return *fd >= 0;
}

static int take_all(struct taken *taken, const struct packet *packet, const struct json *cgroup,
		    struct surroundings *around, struct evidence *evidence)
{
	const struct json *tasks = json_get(cgroup, "tasks");
	const struct json *at = tasks ? tasks + 1 : NULL;

	errno = EINVAL;
	if (!tasks || tasks->kind != JSON_LIST || tasks->entries > MAX_TASKS)
		return -1;
	around->task_count = tasks->entries;
	for (uint32_t i = 0; i < tasks->entries; i++, at = json_next(at)) {
		around->tasks[i] = take(taken, packet, at);
		if (around->tasks[i] < 0)
			return -1;
	}
	if (!take_or_none(taken, packet, cgroup, "into", &around->into) ||
	    !take_or_none(taken, packet, cgroup, "oom", &evidence->oom) ||
	    !take_or_none(taken, packet, cgroup, "peak", &evidence->peak) ||
	    !take_or_none(taken, packet, cgroup, "cpu", &evidence->cpu) ||
	    !take_or_none(taken, packet, cgroup, "pids", &evidence->pids))
		return -1;
	return 0;
}

static void close_old(void)
{
	int *evidence[] = {&self.evidence.oom, &self.evidence.peak, &self.evidence.cpu,
			   &self.evidence.pids};

	for (size_t i = 0; i < self.around.task_count; i++)
		close_fd(&self.around.tasks[i]);
	close_fd(&self.around.into);
	for (size_t i = 0; i < ARRAY_SIZE(evidence); i++)
		close_fd(evidence[i]);
}

/* Start what comes from now on in the cgroup that *cgroup* describes, all of it or nothing. */
int cgroup_replace(const struct packet *packet, const struct json *cgroup, struct failure *failure)
{
	struct surroundings around = self.around;
	struct evidence evidence;
	struct taken taken = {.count = 0};

	if (cgroup->kind != JSON_OBJECT || take_all(&taken, packet, cgroup, &around, &evidence)) {
		fail(failure, cgroup->kind == JSON_OBJECT ? errno : EINVAL, "cgroup", NULL);
		while (taken.count)
			close(taken.fds[--taken.count]);
		return -1;
	}
	close_old();
	self.around = around;
	self.evidence = evidence;
	if (self.application.state != IDLE)
		/* What the old one has counted is gone: of sums there is no evidence any more. */
		counters_begin(&self.evidence, &self.application.before);
	return 0;
}
