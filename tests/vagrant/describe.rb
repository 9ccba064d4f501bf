# Prints as JSON what Vagrant makes of the Vagrantfile in a folder for a provider: each machine as that provider would get it, what
# the provider's own validation says of it; and of Vagrant, its SSH library's algorithms and its public key. ARGV: provider, folder.
require "vagrant"
require "json"
require "net/ssh"
require "ostruct"

PROVIDER = ARGV.fetch(0).to_sym
ENVIRONMENT = Vagrant::Environment.new(cwd: ARGV.fetch(1))

# VirtualBox's configuration keeps both as arguments of VBoxManage.
def size(config, name)
  return config.public_send(name) unless PROVIDER == :virtualbox

  config.customizations.filter_map { |_, words| Integer(words[words.index("--#{name}") + 1]) if words.include?("--#{name}") }.last
end

machines = ENVIRONMENT.machine_names.to_h do |name|
  found = ENVIRONMENT.vagrantfile.machine_config(name, PROVIDER, nil, nil, false)
  config = found[:config]
  own = config.vm.get_provider_config(PROVIDER)
  # As much of a machine as the providers' validation asks for: none exists yet.
  machine = OpenStruct.new(name: name, config: config, provider_config: own)
  errors = found[:config_errors] + own.validate(machine).values.flatten
  networks = config.vm.networks.filter_map { |kind, network| network[:ip] if kind == :private_network }
  [name, {
    box: config.vm.box, hostname: config.vm.hostname, addresses: networks, memory_mb: size(own, :memory), cpus: size(own, :cpus),
    provision: config.vm.provisioners.map { |provisioner| provisioner.config.inline }.join, insert_key: config.ssh.insert_key,
    errors: errors
  }]
end

public_key = Vagrant.source_root.join("keys", "vagrant.pub").read
puts JSON.generate(machines: machines, algorithms: Net::SSH::Transport::Algorithms::ALGORITHMS, public_key: public_key)
