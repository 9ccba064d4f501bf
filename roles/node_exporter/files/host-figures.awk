# Writes the figures of a host and its units in Prometheus's text format; host-figures says what they are. Arguments: /proc/PID.

function first(file,    line) {
  if ((getline line < file) <= 0) line = ""
  close(file)
  return line
}

# Return the unit in a path of cgroups such as /system.slice/cron.service/more; "": none.
function unit_of(path,    parts, count, i) {
  count = split(path, parts, "/")
  if (parts[2] != "system.slice") return ""
  for (i = 3; i <= count; i++) if (parts[i] ~ /\.service$/) {
    for (folder = ""; i >= 2; i--) folder = "/" parts[i] folder
    path = folder
    sub(/.*\//, "", path)
    # Those of one command, or of a log-in, are named anew each time.
    if (path ~ /^(run-|user@)/) return ""
    folders[path] = folder
    return path
  }
  return ""
}

function process(pid,    line, unit, parts, shared) {
  unit = ""
  while ((getline line < (pid "/cgroup")) > 0) if (line ~ /^0::/) unit = unit_of(substr(line, 4))
  close(pid "/cgroup")
  shared = 0
  while ((getline line < (pid "/status")) > 0) {
    split(line, parts)
    if (line ~ /^RssAnon:/) memory[unit] += parts[2] * 1024
    if (line ~ /^RssShmem:/) shared = parts[2] * 1024
  }
  close(pid "/status")
  if (shared > most_shared[unit]) most_shared[unit] = shared
  while ((getline line < (pid "/io")) > 0) {
    split(line, parts)
    if (parts[1] == "read_bytes:") bytes_read[unit] += parts[2]
    if (parts[1] == "write_bytes:") bytes_written[unit] += parts[2]
  }
  close(pid "/io")
}

# Print processor time of a cgroup, in seconds, user's and system's.
function processor(name, labels, folder,    line, parts) {
  while ((getline line < ("/sys/fs/cgroup" folder "/cpu.stat")) > 0) {
    split(line, parts)
    if (parts[1] == "user_usec") printf "%s{%smode=\"user\"} %.6f\n", name, labels, parts[2] / 1e6
    if (parts[1] == "system_usec") printf "%s{%smode=\"system\"} %.6f\n", name, labels, parts[2] / 1e6
  }
  close("/sys/fs/cgroup" folder "/cpu.stat")
}

function head(name, type, help) {
  printf "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type
}

function processors(    count, line, quota, parts) {
  count = 0
  while ((getline line < "/proc/cpuinfo") > 0) if (line ~ /^processor[ \t]*:/) count++
  close("/proc/cpuinfo")
  split(first("/sys/fs/cgroup/cpu.max"), parts)
  quota = parts[1] + 0 > 0 ? parts[1] / parts[2] : 0
  line = first("/run/cgroup1/cpu/cpu.cfs_quota_us") + 0
  if (line > 0) quota = line / first("/run/cgroup1/cpu/cpu.cfs_period_us")
  return quota > 0 && quota < count ? quota : count
}

function host_memory(    line, parts, total, available, limit, used) {
  while ((getline line < "/proc/meminfo") > 0) {
    split(line, parts)
    if (parts[1] == "MemTotal:") total = parts[2] * 1024
    if (parts[1] == "MemAvailable:") available = parts[2] * 1024
  }
  close("/proc/meminfo")
  used = total - available
  limit = first("/run/cgroup1/memory/memory.limit_in_bytes") + 0
  if (limit > 0) used = own_use("/run/cgroup1/memory/memory.usage_in_bytes", "/run/cgroup1/memory/memory.stat", "total_inactive_file", "total_active_file")
  else {
    limit = first("/sys/fs/cgroup/memory.max") + 0
    if (limit > 0) used = own_use("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file", "active_file")
  }
  if (limit <= 0 || limit > total) limit = total
  head("host_memory_bytes", "gauge", "Memory in use that cannot be given back.")
  printf "host_memory_bytes %.0f\n", used
  head("host_memory_limit_bytes", "gauge", "Memory that this host may use.")
  printf "host_memory_limit_bytes %.0f\n", limit
}

# Return what a cgroup uses without the pages of files, which the kernel gives back.
function own_use(usage, statistics, inactive, active,    used, line, parts) {
  used = first(usage) + 0
  while ((getline line < statistics) > 0) {
    split(line, parts)
    if (parts[1] == inactive || parts[1] == active) used -= parts[2]
  }
  close(statistics)
  return used > 0 ? used : 0
}

function pressure(resource,    line, parts) {
  line = first("/sys/fs/cgroup/" resource ".pressure")
  if (split(line, parts, "total=") == 2) printf "host_waiting_seconds_total{resource=\"%s\"} %.6f\n", resource, parts[2] / 1e6
}

BEGIN {
  for (i = 1; i < ARGC; i++) process(ARGV[i])

  head("host_cpu_seconds_total", "counter", "Processor time of all processes of the host.")
  processor("host_cpu_seconds_total", "", "")
  head("host_cpus", "gauge", "Processors that the host may use.")
  printf "host_cpus %g\n", processors()
  host_memory()
  head("host_waiting_seconds_total", "counter", "Time in which some process waited for a resource.")
  pressure("cpu"); pressure("memory"); pressure("io")
  head("host_io_bytes_total", "counter", "Bytes that all processes read from or wrote to disks.")
  for (unit in bytes_read) total_read += bytes_read[unit]
  for (unit in bytes_written) total_written += bytes_written[unit]
  printf "host_io_bytes_total{direction=\"read\"} %.0f\n", total_read
  printf "host_io_bytes_total{direction=\"written\"} %.0f\n", total_written

  head("unit_cpu_seconds_total", "counter", "Processor time of a unit; containers are units.")
  for (unit in folders) processor("unit_cpu_seconds_total", "unit=\"" unit "\",", folders[unit])
  head("unit_memory_bytes", "gauge", "Memory of a unit's processes.")
  for (unit in folders) printf "unit_memory_bytes{unit=\"%s\"} %.0f\n", unit, memory[unit] + most_shared[unit]
  head("unit_io_bytes_total", "counter", "Bytes that a unit's processes read from or wrote to disks.")
  for (unit in folders) {
    printf "unit_io_bytes_total{unit=\"%s\",direction=\"read\"} %.0f\n", unit, bytes_read[unit]
    printf "unit_io_bytes_total{unit=\"%s\",direction=\"written\"} %.0f\n", unit, bytes_written[unit]
  }
}
