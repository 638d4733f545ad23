/*
 * The root file system of an instance: built on a small tmpfs, then pivoted into.
 *
 * What is shown is the caller's decision and comes as a list of steps (launcher/plan.py); here they
 * are carried out. A read-only clone of a directory has no mount point for what is mounted over it,
 * so the top level is always a tmpfs of our own.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_TERMINALS "256"
#define MAX_SHM_INODES 16384
#define MAX_LAYERS 16
#define EMPTY_FILE "/.empty"
#define EMPTY_DIRECTORY "/.none"

/* OCI runtime-spec, config-linux "Devices", and what a terminal needs. */
static const struct {
	const char *name;
	unsigned int major, minor;
} devices[] = {
	{"null", 1, 3},	  {"zero", 1, 5},    {"full", 1, 7},
	{"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
};

static const struct {
	const char *name, *target;
} links[] = {
	{"fd", "/proc/self/fd"},	   {"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
};

/* runtime-spec defaults, and what else tells about the host or its kernel's addresses. */
static const char *const masked[] = {
	"/proc/acpi",	      "/proc/asound",	    "/proc/interrupts",	  "/proc/kallsyms",
	"/proc/kcore",	      "/proc/keys",	    "/proc/kpagecgroup",  "/proc/kpagecount",
	"/proc/kpageflags",   "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
	"/proc/slabinfo",     "/proc/timer_list",   "/proc/timer_stats",  "/proc/vmallocinfo",
	"/sys/block",	      "/sys/class/block",   "/sys/firmware",	  "/sys/kernel/debug",
	"/sys/kernel/tracing",
};
static const char *const read_only[] = {
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
};

static int make_devices(int dev)
{
	mode_t mask = umask(0);
	int failed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(devices) && !failed; i++)
		failed = mknodat(dev, devices[i].name, S_IFCHR | 0666,
				 makedev(devices[i].major, devices[i].minor));
	umask(mask);
	for (size_t i = 0; i < ARRAY_SIZE(links) && !failed; i++)
		failed = symlinkat(links[i].target, dev, links[i].name);
	return failed || mkdirat(dev, "pts", 0755) || mkdirat(dev, "shm", 01777);
}

static int mount_dev(int root, int64_t shm_bytes, struct failure *failure)
{
	char shm[96];
	int dev;

	/* No nodev here: these nodes are the point. Everything else that is writable has it. */
	if (mount_new("tmpfs", root, "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k",
		      failure))
		return -1;
	dev = target_open(root, "/dev");
	if (dev < 0 || make_devices(dev))
		return fail(failure, errno, "/dev", NULL);
	close(dev);
	/* Terminals are counted host-wide: without a share of its own one instance takes all. */
	if (mount_new("devpts", root, "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		      "newinstance,ptmxmode=0666,mode=0620,max=" MAX_TERMINALS, failure))
		return -1;
	snprintf(shm, sizeof(shm), "mode=1777,size=%lld,nr_inodes=%d", (long long)shm_bytes,
		 MAX_SHM_INODES);
	return mount_new("shm", root, "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, shm,
			 failure);
}

/* ---- steps ---- */

struct step {
	const char *kind, *source, *target;
	unsigned long flags;
	const struct json *data;
};

static int read_flags(const struct json *words, unsigned long *flags)
{
	static const struct {
		const char *word;
		unsigned long flag;
	} known[] = {
		{"ro", MS_RDONLY}, {"nosuid", MS_NOSUID}, {"nodev", MS_NODEV}, {"noexec", MS_NOEXEC},
	};
	const struct json *at = words + 1;

	if (words->kind != JSON_LIST)
		return -1;
	*flags = 0;
	for (uint32_t i = 0; i < words->entries; i++, at = json_next(at)) {
		size_t word = 0;

		while (word < ARRAY_SIZE(known) &&
		       (at->kind != JSON_TEXT || strcmp(at->text, known[word].word)))
			word++;
		if (word == ARRAY_SIZE(known))
			return -1;
		*flags |= known[word].flag;
	}
	return 0;
}

/* A step travels as the list of its fields: kind, source, target, flags, data. */
static int read_step(const struct json *list, struct step *step, struct failure *failure)
{
	const struct json *field[5];
	const struct json *at = list + 1;

	if (list->kind != JSON_LIST || list->entries != ARRAY_SIZE(field))
		return fail(failure, 0, NULL, "a root step is a list of five");
	for (size_t i = 0; i < ARRAY_SIZE(field); i++, at = json_next(at))
		field[i] = at;
	for (size_t i = 0; i < 3; i++)
		if (field[i]->kind != JSON_TEXT)
			return fail(failure, 0, NULL, "a root step has what is no name");
	*step = (struct step){
		.kind = field[0]->text,
		.source = field[1]->text,
		.target = field[2]->text,
		.data = field[4],
	};
	if (read_flags(field[3], &step->flags))
		return fail(failure, 0, step->target, "a root step has a flag that is not known");
	return 0;
}

static int open_layers(const struct json *list, int *fds, size_t *count, struct failure *failure)
{
	const struct json *at = list + 1;

	if (list->kind != JSON_LIST || !list->entries || list->entries > MAX_LAYERS)
		return fail(failure, 0, NULL, "no list of layers, or too many");
	for (uint32_t i = 0; i < list->entries; i++, at = json_next(at)) {
		if (at->kind != JSON_TEXT)
			return fail(failure, 0, NULL, "a layer that is no name");
		fds[i] = open(at->text, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fds[i] < 0)
			return fail(failure, errno, at->text, NULL);
		(*count)++;
	}
	return 0;
}

static int apply_overlay(int root, const struct step *step, struct failure *failure)
{
	char options[MAX_LAYERS * FD_PATH + 64] = "lowerdir=";
	char *to = options + strlen(options);
	int fds[MAX_LAYERS];
	size_t count = 0;
	int failed = open_layers(step->data, fds, &count, failure);

	/*
	 * By number: a path may have a comma or a colon, three may be longer than the page that
	 * mount(2) takes, and the instance reads these options in its mountinfo.
	 */
	for (size_t i = 0; i < count; i++) {
		char path[FD_PATH];

		if (i)
			*to++ = ':';
		to = stpcpy(to, fd_path(fds[i], path));
	}
	/* An image's attributes must not name another directory of its layer. */
	strcpy(to, ",redirect_dir=nofollow");
	if (!failed)
		failed = mount_new("overlay", root, step->target, "overlay", step->flags, options,
				   failure);
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
	return failed;
}

static int apply(int root, const struct step *step, struct failure *failure)
{
	if (!strcmp(step->kind, "bind"))
		return mount_bind(step->source, root, step->target, step->flags, true, failure);
	if (!strcmp(step->kind, "overlay"))
		return apply_overlay(root, step, failure);
	if (!strcmp(step->kind, "tmpfs")) {
		if (step->data->kind != JSON_TEXT)
			return fail(failure, 0, step->target, "options that are no text");
		return mount_new("tmpfs", root, step->target, "tmpfs", step->flags,
				 step->data->text, failure);
	}
	if (!strcmp(step->kind, "symlink")) {
		const char *name = step->target + strspn(step->target, "/");

		if (symlinkat(step->source, root, name))
			return fail(failure, errno, step->target, NULL);
		return 0;
	}
	return fail(failure, 0, step->target, "unknown root step");
}

static int apply_all(int root, const struct json *steps, struct failure *failure)
{
	/* What failed is told when nothing of it is in use any more. */
	static char text[PATH_MAX];
	const struct json *at = steps ? steps + 1 : NULL;

	if (!steps || steps->kind != JSON_LIST)
		return fail(failure, 0, NULL, "no list of root steps");
	for (uint32_t i = 0; i < steps->entries; i++, at = json_next(at)) {
		struct step step;

		if (read_step(at, &step, failure))
			return -1;
		if (apply(root, &step, failure)) {
			snprintf(text, sizeof(text), "%s %s: %s", step.kind, step.target,
				 failure->text);
			return fail(failure, failure->number, failure->path, text);
		}
	}
	return 0;
}

/*
 * Build what does not depend on the network namespace; return the new root's descriptor, or -1.
 *
 * The caller is in a mount namespace of its own whose mounts are private, and in the PID namespace
 * that /proc shall show.
 */
int rootfs_build(const char *new_root, const struct json *steps, int64_t shm_bytes,
		 struct failure *failure)
{
	int root, empty;

	if (mount("tmpfs", new_root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m"))
		return fail(failure, errno, new_root, NULL);
	root = open(new_root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return fail(failure, errno, new_root, NULL);
	empty = openat(root, EMPTY_FILE + 1, O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
	if (empty < 0 || close(empty) || mkdirat(root, EMPTY_DIRECTORY + 1, 0555))
		return fail(failure, errno, new_root, NULL);
	if (mount_new("proc", root, "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL,
		      failure) ||
	    mount_dev(root, shm_bytes, failure) || apply_all(root, steps, failure))
		return -1;
	return root;
}

/* ---- the end ---- */

static int mount_sys(int root, bool own_network, struct failure *failure)
{
	unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (own_network)
		return mount_new("sysfs", root, "/sys", "sysfs", flags, NULL, failure);
	/* Not recursive: the host's cgroup file systems below /sys stay outside. */
	return mount_bind("/sys", root, "/sys", flags, false, failure);
}

static int protect(int root, const char *path, struct failure *failure)
{
	int fd = target_open(root, path);
	char source[FD_PATH];
	int failed;

	if (fd < 0)
		return errno == ENOENT ? 0 : fail(failure, errno, path, NULL);
	failed = mount_bind(fd_path(fd, source), root, path, MS_RDONLY, false, failure);
	close(fd);
	if (failed)
		fail(failure, failure->number, path, failure->text);
	return failed;
}

static int mask(int root, const char *path, struct failure *failure)
{
	int fd = target_open(root, path);
	char source[FD_PATH], target[FD_PATH];
	struct stat about;
	int empty, failed;

	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : fail(failure, errno, path, NULL);
	if (fstat(fd, &about))
		return fail(failure, errno, path, NULL);
	empty = target_open(root, S_ISDIR(about.st_mode) ? EMPTY_DIRECTORY : EMPTY_FILE);
	failed = empty < 0 ||
		 mount(fd_path(empty, source), fd_path(fd, target), NULL, MS_BIND, NULL);
	if (failed)
		fail(failure, errno, path, NULL);
	if (empty >= 0)
		close(empty);
	close(fd);
	return failed ? -1 : 0;
}

static int enter(const char *new_root, struct failure *failure)
{
	/* pivot_root(2), "pivot_root(".", ".")": no directory for the old root is needed. */
	if (chdir(new_root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) ||
	    chdir("/"))
		return fail(failure, errno, new_root, NULL);
	return 0;
}

/* Mount /sys, hide what the host keeps to itself, and make *new_root* the root. */
int rootfs_finish(const char *new_root, int root, bool own_network, struct failure *failure)
{
	unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID;
	char path[FD_PATH];
	int dev;

	if (mount_sys(root, own_network, failure))
		return -1;
	for (size_t i = 0; i < ARRAY_SIZE(read_only); i++)
		if (protect(root, read_only[i], failure))
			return -1;
	for (size_t i = 0; i < ARRAY_SIZE(masked); i++)
		if (mask(root, masked[i], failure))
			return -1;
	dev = target_open(root, "/dev");
	if (dev < 0 || mount("none", fd_path(dev, path), NULL, flags | MS_NOEXEC, NULL))
		return fail(failure, errno, "/dev", NULL);
	close(dev);
	if (mount("none", fd_path(root, path), NULL, flags | MS_NODEV, NULL))
		return fail(failure, errno, new_root, NULL);
	close(root);
	return enter(new_root, failure);
}

/* Cut mount propagation in both directions for this mount namespace. */
int make_private(void)
{
	return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}
